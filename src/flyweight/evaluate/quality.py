"""Quality of one artifact, or of a model in PyTorch: the metric with its interval, and on each slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from flyweight._atomic import MANIFEST
from flyweight.core.protocols import Task
from flyweight.core.report import Estimate, Slice
from flyweight.data.examples import Splits
from flyweight.data.load import open_data
from flyweight.data.preprocessing import Preprocessing
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
_RECORDED = ("inputs", "target", "slices", "evaluation_fraction", "seed")


@final
@dataclass(frozen=True, kw_only=True)
class Quality:
    """What was measured.

    Attributes:
        metric: Its name; higher is better.
        estimate: Its value with a bootstrap interval.
        slices: Name, examples and metric of each slice, the worst first.
        examples: Evaluation examples.
    """

    metric: str
    estimate: Estimate
    slices: tuple[tuple[str, int, float], ...]
    examples: int


def is_artifact(path: Path) -> bool:
    """Whether the folder holds a manifest."""
    return (path / MANIFEST).is_file()


def recorded_settings(path: Path) -> dict[str, object]:
    """Task and data columns as the artifact's manifest has them, by key of flyweight.yaml.

    A ``file.py:metric`` is left out: the artifact may come from elsewhere, and its code is not run.

    Raises:
        ArtifactError: The manifest is damaged.
    """
    manifest = read_manifest(path)
    known = {key: manifest.settings.get(key) for key in _RECORDED}
    if ":" not in manifest.task:
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
    made_from_it = manifest.settings.get("data") == settings.data
    task, splits = _task_and_data(settings, whole=not made_from_it)
    splits = in_model_order(splits, settings.classes or manifest.classes)
    preprocessing = Preprocessing.from_dict(manifest.preprocessing, artifact.path)
    session = open_runtime(settings.runtime, manifest.format).load(artifact, settings.threads)
    scores = evaluate(
        session, preprocessing, task, splits, batch_size=examples_a_call(manifest), progress=progress
    )
    return _quality(scores, task, splits)


def model_quality(settings: Settings, *, progress: Progress = SILENT) -> Quality:
    """Of the model itself, in PyTorch.

    Raises:
        InputError: The model or the data cannot be used, or do not fit each other.
        UnsupportedError: The model is of a kind that is not supported.
    """
    from flyweight.load.open import open_model

    task, splits = _task_and_data(settings, whole=False)
    opened = open_model(settings, splits, task)
    if opened.model.preprocessing is None:
        raise InputError(f"model {settings.model} has no preprocessing, so raw data cannot be given to it")
    session = open_runtime(PYTORCH, "module").load(opened.model, settings.threads)
    scores = evaluate(session, opened.model.preprocessing, task, opened.splits, progress=progress)
    return _quality(scores, task, opened.splits)


def _task_and_data(settings: Settings, *, whole: bool) -> tuple[Task, Splits]:
    task = open_task(settings.task, settings.task_settings)
    data = settings.data_settings
    splits = open_data(settings.data, data, class_targets=task.class_targets, whole=whole)
    settled = settle(task, splits)
    if whole and settled == Similarity("neighbours"):  # every example would be its own nearest neighbour
        splits = open_data(settings.data, data, class_targets=task.class_targets)
    return settled, splits


def _quality(scores: Scores, task: Task, splits: Splits) -> Quality:
    parts: tuple[Slice, ...] = slices(task, scores, scores, splits.evaluation)
    worst_first = sorted(parts, key=lambda part: part.original)
    return Quality(
        metric=task.metric_name,
        estimate=bootstrap(task, scores),
        slices=tuple((part.name, part.examples, part.original) for part in worst_first),
        examples=len(scores),
    )
