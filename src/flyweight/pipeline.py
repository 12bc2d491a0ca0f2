"""The whole flow, top to bottom. Read this file first.

load -> profile -> plan -> apply -> export -> check parity -> evaluate -> judge -> write, and try the next
plan if the judgement is no. Every number in a report was measured on the exported file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from torch import nn

from flyweight import _atomic
from flyweight.apply import apply, predicted
from flyweight.core.layer import FLOAT_BITS
from flyweight.core.plan import Plan
from flyweight.core.protocols import Task
from flyweight.core.report import Artifact, Attempt, Parity, Report
from flyweight.data.examples import Splits
from flyweight.data.leaks import find_leaks
from flyweight.data.load import open_data
from flyweight.errors import InputError, ParityError, UnsupportedError
from flyweight.evaluate.evaluate import Preprocess
from flyweight.evaluate.guarantee import judge, shortfall
from flyweight.evaluate.machine import machine, versions
from flyweight.evaluate.measurement import Conditions, Subject, measure, scored, timed_inputs
from flyweight.export.artifact import Origin, mark, pack
from flyweight.export.check import check_parity
from flyweight.load.open import open_model
from flyweight.measure.calibrate import calibration_batches
from flyweight.measure.layers import layer_reports, notes_on
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import candidates
from flyweight.progress import SILENT, Progress
from flyweight.report.write import write_reports
from flyweight.settings import Settings
from flyweight.tasks.open import open_task, settle

REFUSED_SUFFIX = "-refused"


def compress(
    settings: Settings,
    *,
    module: nn.Module | None = None,
    splits: Splits | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Make the model smaller and faster, measure it, and write ``settings.out`` if it holds what was asked.

    Otherwise the best attempt and its report are written to ``settings.out`` with `REFUSED_SUFFIX`, and
    ``report.verdict`` says why. An interrupt leaves neither.

    Args:
        settings: What to compress, with which data, into what budget.
        module: The model itself; ``settings.model`` is then only its name.
        splits: The data themselves; ``settings.data`` is then only their name.
        progress: Told of each stage.

    Raises:
        InputError: The model, data, output folder or a setting of a technique cannot be used.
        UnsupportedError: No technique could be applied, or the model cannot be exported.
        ValueError: The runtime or format is unknown.
    """
    out = Path(settings.out)
    try:
        with _atomic.new_folder(out, overwrite=settings.overwrite) as folder, _workshop() as work:
            run = _prepare(settings, work, module=module, splits=splits, progress=progress)
            best = _best_attempt(run)
            if not best.report.verdict.shipped:
                raise _Refused(best.report, best.write_to(refused_path(out)))
            best.fill(folder)
            return best.report
    except _Refused as refused:
        return refused.report


def export(
    settings: Settings,
    *,
    module: nn.Module | None = None,
    splits: Splits | None = None,
    progress: Progress = SILENT,
) -> Artifact:
    """Write the model as it is, or with ``settings.plan`` carried out, without measuring or judging it.

    Raises:
        As `compress`; ParityError when the file does not compute what the model computes.
    """
    out = Path(settings.out)
    with _atomic.new_folder(out, overwrite=settings.overwrite) as folder:
        task, data, model = _open(settings, module=module, splits=splits, progress=progress)
        plan = _given_plan(settings) or Plan(model.name)
        batches = calibration_batches(model, task, data)
        result = apply(model, plan, batches)
        with progress.stage("Exporting"):
            artifact = pack(result, plan, folder, _origin(settings, data), "exported")
            check_parity(result, artifact, batches[0])
        _atomic.write_text(folder / "plan.json", plan.to_json())
    return artifact


def refused_path(out: Path) -> Path:
    """Where the best attempt of a refused run is kept."""
    return out.with_name(out.name + REFUSED_SUFFIX)


@final
@dataclass(frozen=True, eq=False)
class _Run:
    """What all attempts share."""

    settings: Settings
    task: Task
    splits: Splits
    model: Model
    plans: tuple[tuple[str, Plan], ...]
    original: Subject
    work: Path
    notes: tuple[str, ...]
    progress: Progress


@final
@dataclass(frozen=True, eq=False)
class _Tried:
    """One attempt that got as far as a report."""

    report: Report
    artifact: Artifact
    plan: Plan

    def fill(self, folder: Path) -> None:
        """Write artifact, plan and reports into a folder."""
        mark(self.artifact, "shipped" if self.report.verdict.shipped else "refused")
        for file in sorted(self.artifact.path.iterdir()):
            _atomic.write_bytes(folder / file.name, file.read_bytes())
        _atomic.write_text(folder / "plan.json", self.plan.to_json())
        write_reports(self.report, folder)

    def write_to(self, path: Path) -> Path:
        """The same, as a folder that replaces an earlier one."""
        with _atomic.new_folder(path, overwrite=True) as folder:
            self.fill(folder)
        return path


class _Refused(Exception):
    """Carries a refused report past the folder that must not come to be."""

    def __init__(self, report: Report, kept: Path) -> None:
        super().__init__(str(kept))
        self.report = report


def _prepare(
    settings: Settings, work: Path, *, module: nn.Module | None, splits: Splits | None, progress: Progress
) -> _Run:
    """Load everything, and measure the original's quality once for all attempts."""
    task, data, model = _open(settings, module=module, splits=splits, progress=progress)
    plans = _plans(settings, model)
    leaks = tuple(leak.sentence for leak in find_leaks(data))
    folder = work / "original"
    folder.mkdir()
    with progress.stage("Exporting the original"):
        artifact = pack(model, Plan(model.name), folder, _origin(settings, data), "exported")
        check_parity(model, artifact, calibration_batches(model, task, data, size=2)[0])
    original = _subject(settings, model, artifact, task, data, progress=progress)
    return _Run(settings, task, data, model, plans, original, work, leaks, progress)


def _open(
    settings: Settings, *, module: nn.Module | None, splits: Splits | None, progress: Progress
) -> tuple[Task, Splits, Model]:
    task = open_task(settings.task, settings.task_settings)
    if splits is None:
        with progress.stage("Reading the data"):
            splits = open_data(settings.data, settings.data_settings, class_targets=task.class_targets)
    task = settle(task, splits)
    with progress.stage("Loading the model"):
        opened = open_model(settings, splits, task, module=module)
    return task, opened.splits, opened.model


def _best_attempt(run: _Run) -> _Tried:
    """The first attempt that may be shipped, else the one that is closest to it."""
    tried: list[_Tried] = []
    attempts: list[Attempt] = []
    for name, plan in run.plans:
        try:
            attempt = _attempt(run, name, plan, tuple(attempts))
        except (UnsupportedError, ParityError) as error:
            attempts.append(Attempt(name=name, outcome=str(error)))
            continue
        tried.append(attempt)
        attempts.append(attempt.report.attempts[-1])
        if attempt.report.verdict.shipped:
            return attempt
    if not tried:
        raise UnsupportedError(
            "nothing could be applied: " + "; ".join(f"{a.name}: {a.outcome}" for a in attempts)
        )
    budget = run.settings.budget
    best = min(
        tried,
        key=lambda t: shortfall(t.report.verdict, t.report.compressed, t.report.comparison, budget),
    )
    return _Tried(replace(best.report, attempts=tuple(attempts)), best.artifact, best.plan)


def _plans(settings: Settings, model: Model) -> tuple[tuple[str, Plan], ...]:
    """(name, plan) in the order in which they are tried; made before long work: this checks the settings."""
    plan = _given_plan(settings)
    if plan is not None:
        predicted(plan, profile(model))
        return (("plan", plan),)
    try:
        return tuple(candidates(profile(model), settings.techniques, settings.technique_settings))
    except ValueError as error:
        raise InputError(f"techniques: {error}") from error


def _attempt(run: _Run, name: str, plan: Plan, before: tuple[Attempt, ...]) -> _Tried:
    """Carry out one plan, export, measure and judge."""
    settings, progress = run.settings, run.progress
    batches = calibration_batches(run.model, run.task, run.splits)
    with progress.stage(f"Applying {name}"):
        model = apply(run.model, plan, batches)
    folder = run.work / f"attempt-{len(before)}"
    folder.mkdir()
    with progress.stage(f"Exporting {name}"):
        artifact = pack(model, plan, folder, _origin(settings, run.splits), "refused")  # until it is judged
        parity: Parity = check_parity(model, artifact, batches[0])
    compressed = _subject(settings, model, artifact, run.task, run.splits, progress=progress)
    with progress.stage(f"Measuring {name}"):
        layers = layer_reports(run.model, model, plan, batches[0])
        conditions = _conditions(settings)
        inputs = timed_inputs(_preprocess(run.model), run.task, run.splits, settings.batch_size)
        measured = measure(
            run.original, compressed, run.task, run.splits, inputs=inputs, conditions=conditions
        )
    verdict = judge(*measured, settings.budget)
    outcome = Attempt(
        name=name,
        storage_bytes=measured[1].storage_bytes,
        speedup=measured[2].speedup.value,
        quality_drop=measured[2].quality_drop.value,
        outcome="shipped" if verdict.shipped else "; ".join(verdict.reasons),
    )
    report = Report(
        model=run.model.name,
        task=run.task.name,
        metric=run.task.metric_name,
        technique=name,
        runtime=settings.runtime,
        original=measured[0],
        compressed=measured[1],
        comparison=measured[2],
        layers=layers,
        parity=parity,
        attempts=(*before, outcome),
        verdict=verdict,
        notes=(*run.notes, *notes_on(layers, measured[2], settings.budget)),
        versions=dict(versions()),
        machine=dict(machine()),
        settings=settings.to_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return _Tried(report, artifact, plan)


def _subject(
    settings: Settings, model: Model, artifact: Artifact, task: Task, splits: Splits, *, progress: Progress
) -> Subject:
    session = _conditions(settings).load(artifact)
    scores = scored(session, _preprocess(model), task, splits, progress=progress)
    layers = profile(model).layers
    integer_macs = sum(layer.macs for layer in layers if layer.activation_bits == 8)
    operand_bits = 8 if 2 * integer_macs > sum(layer.macs for layer in layers) else FLOAT_BITS
    return Subject(artifact=artifact, session=session, scores=scores, operand_bits=operand_bits)


def _conditions(settings: Settings) -> Conditions:
    return Conditions(
        runtime=settings.runtime,
        threads=settings.threads,
        batch_size=settings.batch_size,
        seconds=settings.seconds,
    )


def _preprocess(model: Model) -> Preprocess:
    if model.preprocessing is None:
        raise InputError(f"model {model.name!r} has no preprocessing: open it with flyweight.load.open")
    return model.preprocessing


def _origin(settings: Settings, splits: Splits) -> Origin:
    return Origin(settings=settings, classes=splits.evaluation.classes)


def _given_plan(settings: Settings) -> Plan | None:
    if settings.plan is None:
        return None
    path = Path(settings.plan)
    try:
        return Plan.from_json(path.read_text())
    except OSError as error:
        raise InputError(f"plan {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"plan {path}: {error}") from error


@contextmanager
def _workshop() -> Iterator[Path]:
    """A folder for attempts, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="flyweight-") as folder:
        yield Path(folder)
