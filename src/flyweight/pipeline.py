"""The whole flow, top to bottom. Read this file first.

load -> profile -> plan -> apply -> train -> export -> check parity -> evaluate -> judge -> write, and try the
next plan if the judgement is no. Every number in a report was measured on the exported file.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from torch import nn

from flyweight import _atomic
from flyweight.apply import carry_out, predicted
from flyweight.attempt import Run, Tried, analysed, attempt, measured_subject, origin_of
from flyweight.core.plan import Plan
from flyweight.core.protocols import Task
from flyweight.core.report import Artifact, Attempt, Report, refused_path
from flyweight.data.examples import Splits
from flyweight.data.leaks import find_leaks
from flyweight.data.load import open_data
from flyweight.errors import ContractError, InputError, ParityError, UnsupportedError
from flyweight.evaluate.guarantee import shortfall
from flyweight.evaluate.guessing import check_better_than_guessing
from flyweight.evaluate.quality import Quality
from flyweight.evaluate.statistics import bootstrap
from flyweight.export.artifact import pack
from flyweight.export.check import check_parity
from flyweight.load.open import open_model
from flyweight.load.source import check_model_source
from flyweight.measure.calibrate import calibration_batches
from flyweight.measure.layers import note_on_unused
from flyweight.measure.profile import profile
from flyweight.measure.reference import reference_quality
from flyweight.model import Model
from flyweight.planner.candidates import candidates, left_out
from flyweight.progress import SILENT, Progress
from flyweight.recover.checkpoint import forget_training
from flyweight.recover.recover import Teaching, recover
from flyweight.run.artifact import open_artifact
from flyweight.settings import Settings
from flyweight.tasks.open import open_task, settle

_log = logging.getLogger(__name__)


def compress(
    settings: Settings,
    *,
    module: nn.Module | None = None,
    splits: Splits | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Make the model smaller and faster, measure it, and write ``settings.out`` if it holds what was asked.

    Otherwise the best attempt and its report are written to its `refused_path`, and
    ``report.verdict`` says why. An interrupt leaves neither, but the state of a training, which goes on with
    ``settings.training.resume``.

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
    _atomic.check_replaceable(refused_path(out), overwrite=True)
    try:
        with _atomic.new_folder(out, overwrite=settings.overwrite) as folder, _atomic.work_folder() as work:
            run = _prepare(settings, work, module=module, splits=splits, progress=progress)
            best = _best_attempt(run)
            forget_training(out)
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
        applied = carry_out(model, plan, batches)
        for note in applied.notes:
            _log.warning(note)
        with progress.stage("Exporting"):
            artifact = pack(applied.model, applied.plan, folder, origin_of(settings, data), "exported")
            check_parity(applied.model, artifact, batches[0])
        _atomic.write_text(folder / "plan.json", applied.plan.to_json())
    return open_artifact(out)


def evaluate_plan(
    settings: Settings,
    *,
    module: nn.Module | None = None,
    splits: Splits | None = None,
    progress: Progress = SILENT,
) -> Quality:
    """Quality in PyTorch of what one plan, with training if asked for, makes of the model; writes nothing.

    Also of what no file holds, as activations of few bits are; the notes say so.

    Raises:
        As `compress`; InputError also where there is not one plan.
    """
    task, data, model = _open(settings, module=module, splits=splits, progress=progress)
    plans = _plans(settings, model)
    if len(plans) != 1:
        names = ", ".join(name for name, _ in plans)
        raise InputError(f"one plan can be evaluated, got {names}: join techniques of one plan by +")
    ((name, plan),) = plans
    batches = calibration_batches(model, task, data)
    with progress.stage(f"Applying {name}"):
        applied = carry_out(model, plan, batches)
    told = (*note_on_unused(profile(model)), *left_out(name, plan), *applied.notes)
    result, plan = applied.model, applied.plan
    if settings.training.epochs:
        seed = settings.data_settings.seed
        teaching = Teaching(task=task, splits=data, batches=batches, settings=settings.training, seed=seed)
        recovered = recover(model, result, plan, teaching, progress=progress)
        result, told = recovered.model, (*told, *recovered.sentences(task.metric_name))
    return reference_quality(result, task, data, threads=settings.threads, told=told, progress=progress)


class _Refused(Exception):
    """Carries a refused report past the folder that must not come to be."""

    def __init__(self, report: Report, kept: Path) -> None:
        super().__init__(str(kept))
        self.report = report


def _prepare(
    settings: Settings, work: Path, *, module: nn.Module | None, splits: Splits | None, progress: Progress
) -> Run:
    """Load everything, and measure the original's quality once for all attempts."""
    task, data, model = _open(settings, module=module, splits=splits, progress=progress)
    plans = _plans(settings, model)
    leaks = tuple(leak.sentence for leak in find_leaks(data))
    folder = work / "original"
    folder.mkdir()
    with progress.stage("Exporting the original"):
        artifact = pack(model, Plan(model.name), folder, origin_of(settings, data), "exported")
        batches = calibration_batches(model, task, data)
        check_parity(model, artifact, batches[0])
    original = measured_subject(settings, model, artifact, task, data, progress=progress)
    hardly_better = check_better_than_guessing(task, original.scores, bootstrap(task, original.scores))
    return Run(
        settings=settings,
        task=task,
        splits=data,
        model=model,
        batches=batches,
        plans=plans,
        original=original,
        work=work,
        notes=(*leaks, *hardly_better),
        progress=progress,
    )


def _open(
    settings: Settings, *, module: nn.Module | None, splits: Splits | None, progress: Progress
) -> tuple[Task, Splits, Model]:
    if module is None:
        check_model_source(settings)
    task = open_task(settings.task, settings.task_settings)
    if splits is None:
        with progress.stage("Reading the data"):
            splits = open_data(settings.data, settings.data_settings, class_targets=task.class_targets)
    task = settle(task, splits)
    with progress.stage("Loading the model"):
        opened = open_model(settings, splits, task, module=module)
    return task, opened.splits, opened.model


def _best_attempt(run: Run) -> Tried:
    """The first attempt that may be shipped, else the one that is closest to it; with its analysis."""
    best: Tried | None = None
    attempts: list[Attempt] = []
    for name, plan in run.plans:
        try:
            latest = attempt(run, name, plan, tuple(attempts))
        except (UnsupportedError, ContractError, ParityError) as error:
            attempts.append(Attempt(name=name, outcome=str(error)))
            continue
        attempts.append(latest.report.attempts[-1])
        if latest.report.verdict.shipped:
            return analysed(run, latest)
        if best is None or _shortfall(latest, run.settings) < _shortfall(best, run.settings):
            best = latest
    if best is None:
        raise UnsupportedError(
            "nothing could be applied: " + "; ".join(f"{a.name}: {a.outcome}" for a in attempts)
        )
    best = analysed(run, best)
    return replace(best, report=replace(best.report, attempts=tuple(attempts)))


def _shortfall(tried: Tried, settings: Settings) -> tuple[float, ...]:
    report = tried.report
    return shortfall(report.verdict, report.compressed, report.comparison, settings.budget)


def _plans(settings: Settings, model: Model) -> tuple[tuple[str, Plan], ...]:
    """(name, plan) in the order in which they are tried; made before long work: this checks the settings."""
    plan = _given_plan(settings)
    if plan is not None:
        if settings.techniques or settings.technique_settings:
            flag = "--technique" if settings.techniques else "--set"
            raise InputError(f"plan {settings.plan} says techniques and settings itself: leave out {flag}")
        predicted(plan, profile(model))
        if plan.model != model.name:
            _log.warning(
                "plan %s was made for model %r and is carried out on %r",
                settings.plan,
                plan.model,
                model.name,
            )
        return (("plan", plan),)
    try:
        return tuple(candidates(profile(model), settings.techniques, settings.technique_settings))
    except ValueError as error:
        raise InputError(f"techniques: {error}") from error


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
