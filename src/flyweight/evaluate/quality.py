"""Quality of one artifact, or of a model in PyTorch: the metric with its interval, and on each slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from flyweight._atomic import MANIFEST
from flyweight.core.protocols import Task
from flyweight.core.report import Estimate
from flyweight.data.examples import Splits
from flyweight.data.load import open_data
from flyweight.data.preprocessing import Preprocessing
from flyweight.data.splits import split, with_sizes
from flyweight.errors import InputError
from flyweight.evaluate.evaluate import evaluate, examples_a_call
from flyweight.evaluate.slices import slices
from flyweight.evaluate.statistics import bootstrap
from flyweight.load.classes import in_model_order
from flyweight.progress import SILENT, Progress
from flyweight.run.artifact import open_artifact, read_manifest
from flyweight.run.open import open_runtime
from flyweight.settings import Settings
from flyweight.tasks.open import open_task, settle
from flyweight.tasks.scores import Scores
from flyweight.tasks.similarity import Similarity

PYTORCH = "pytorch"

# What of the settings an artifact was made with decides what it is evaluated on.
_OF_THE_SPLIT = ("evaluation_fraction", "seed")
_RECORDED = ("inputs", "target", "slices", *_OF_THE_SPLIT)


@final
@dataclass(frozen=True, kw_only=True)
class Quality:
    """What was measured.

    Attributes:
        metric: Its name; higher is better.
        estimate: Its value with a bootstrap interval.
        slices: Name, examples and metric of each slice, the worst first.
        few: Name and examples of classes and slices with too few examples to be among ``slices``.
        examples: Evaluation examples.
        of: Examples they were chosen from.
        chosen: Why these, ``"held out when it was made"``; empty where all were taken.
        notes: What else to know of what was measured.
    """

    metric: str
    estimate: Estimate
    slices: tuple[tuple[str, int, float], ...]
    few: tuple[tuple[str, int], ...]
    examples: int
    of: int
    chosen: str
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """A settled task and its data; the rest as in `Quality`."""

    task: Task
    splits: Splits
    of: int
    chosen: str


def is_artifact(path: Path) -> bool:
    """Whether the folder holds a manifest."""
    return (path / MANIFEST).is_file()


def recorded_settings(path: Path, *, task: str | None = None) -> dict[str, object]:
    """Task and data columns as the artifact's manifest has them, by key of flyweight.yaml.

    Args:
        path: The artifact.
        task: The one asked for; None is the artifact's own. A ``file.py:metric`` has to be asked for: the
            artifact may come from elsewhere, and its code is not run unasked.

    Raises:
        ArtifactError: The manifest is damaged.
        InputError: The artifact's own task is a ``file.py:metric``.
    """
    manifest = read_manifest(path)
    if task is None and ":" in manifest.task:
        raise InputError(
            f"{path} was made with the metric {manifest.task}, whose code is not run unasked; if you trust "
            f"it, give it with --task {manifest.task}, else another --task"
        )
    known = {key: manifest.settings.get(key) for key in _RECORDED}
    if task in (None, manifest.task):
        known |= {"task": manifest.task, "task_settings": dict(manifest.task_settings)}
    return {key: value for key, value in known.items() if value not in (None, [])}


def artifact_quality(path: Path, settings: Settings, *, progress: Progress = SILENT) -> Quality:
    """Of the artifact's file in ``settings.runtime``, with the preprocessing it ships.

    Unsplit data are evaluated whole, unless they are what the artifact was made from: then the part that was
    held out is taken again.

    Args:
        path: The artifact.
        settings: Data, task and runtime.
        progress: Told of each stage.

    Raises:
        ArtifactError: The artifact is damaged.
        InputError: The artifact or the data cannot be used, or do not fit each other.
        UnsupportedError: The runtime does not run the artifact's format.
    """
    manifest, artifact = read_manifest(path), open_artifact(path)
    if manifest.preprocessing is None:
        raise InputError(f"{path} ships no preprocessing, so raw data cannot be given to it")
    chosen = _task_and_data(settings, made_with=manifest.settings)
    splits = in_model_order(chosen.splits, settings.classes or manifest.classes)
    preprocessing = Preprocessing.from_dict(manifest.preprocessing, artifact.path)
    session = open_runtime(settings.runtime, manifest.format).load(artifact, settings.threads)
    scores = evaluate(
        session, preprocessing, chosen.task, splits, batch_size=examples_a_call(manifest), progress=progress
    )
    return quality_of(scores, chosen, splits)


def model_quality(settings: Settings, *, progress: Progress = SILENT) -> Quality:
    """Of the model itself, in PyTorch; unsplit data are evaluated whole.

    Raises:
        InputError: The model or the data cannot be used, or do not fit each other.
        UnsupportedError: The model is of a kind that is not supported.
    """
    from flyweight.load.open import open_model
    from flyweight.load.source import check_model_source

    check_model_source(settings)
    chosen = _task_and_data(settings, made_with={})
    opened = open_model(settings, chosen.splits, chosen.task)
    if opened.model.preprocessing is None:
        raise InputError(f"model {settings.model} has no preprocessing, so raw data cannot be given to it")
    session = open_runtime(PYTORCH, "module").load(opened.model, settings.threads)
    scores = evaluate(session, opened.model.preprocessing, chosen.task, opened.splits, progress=progress)
    return quality_of(scores, chosen, opened.splits)


def _task_and_data(settings: Settings, *, made_with: Mapping[str, object]) -> Chosen:
    """The task, and the data with those examples for evaluation that quality is to be measured on."""
    task, data = open_task(settings.task, settings.task_settings), settings.data_settings
    unlimited = replace(data, evaluation_size=None)
    splits = open_data(settings.data, unlimited, class_targets=task.class_targets, whole=True)
    settled = settle(task, splits)
    reasons = []
    of = len(splits.evaluation)
    if splits.evaluation is not splits.train:
        reasons.append("the evaluation part of the data")
    elif "data" in made_with and _is_same(str(made_with["data"]), settings.data):
        splits = split(splits.train, data)
        same = all(made_with.get(key) in (None, getattr(data, key)) for key in _OF_THE_SPLIT)
        reasons.append("held out when it was made" if same else "not those held out when it was made")
    elif settled == Similarity("neighbours"):  # every example would be its own nearest neighbour
        splits = split(splits.train, data)
        reasons.append("neighbours are looked for among the others")
    limited = with_sizes(splits, data)
    if len(limited.evaluation) < len(splits.evaluation):
        reasons.append(f"at most {data.evaluation_size} asked for")
    return Chosen(task=settled, splits=limited, of=of, chosen=", ".join(reasons))


def _is_same(recorded: str, given: str) -> bool:
    return recorded == given or Path(recorded).resolve() == Path(given).resolve()


def quality_of(scores: Scores, chosen: Chosen, splits: Splits, notes: tuple[str, ...] = ()) -> Quality:
    """The metric of the scores, and its value on each slice.

    Args:
        scores: Of the evaluation split.
        chosen: What was evaluated, and why.
        splits: In the model's order of classes.
        notes: See `Quality`.
    """
    task, examples = chosen.task, splits.evaluation
    parts = slices(task, scores, scores, examples)
    shown = {part.name for part in parts}
    small = {part.name: part.examples for part in slices(task, scores, scores, examples, minimum=1)}
    if scores.correct is not None:
        small |= {f"class {name}": 0 for name in examples.classes if f"class {name}" not in small}
    worst_first = sorted(parts, key=lambda part: part.original)
    return Quality(
        metric=task.metric_name,
        estimate=bootstrap(task, scores),
        slices=tuple((part.name, part.examples, part.original) for part in worst_first),
        few=tuple((name, count) for name, count in small.items() if name not in shown),
        examples=len(scores),
        of=chosen.of,
        chosen=chosen.chosen,
        notes=notes,
    )
