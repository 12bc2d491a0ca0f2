"""One attempt: a plan carried out, the result trained, exported, checked, measured and judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from torch import Tensor

from flyweight import _atomic
from flyweight.apply import apply, carry_out, predicted
from flyweight.core.analysis import LayerErrors
from flyweight.core.layer import FLOAT_BITS, ModelProfile
from flyweight.core.plan import Plan, Stage
from flyweight.core.protocols import Task
from flyweight.core.report import (
    Artifact,
    Attempt,
    Comparison,
    LayerReport,
    Measurement,
    Parity,
    Report,
    Verdict,
)
from flyweight.data.examples import Splits
from flyweight.data.roles import with_roles
from flyweight.errors import InputError
from flyweight.evaluate.evaluate import Preprocess
from flyweight.evaluate.guarantee import caveats, judge
from flyweight.evaluate.machine import machine, versions
from flyweight.evaluate.measurement import Conditions, Subject, measure, scored, timed_inputs
from flyweight.export.artifact import Origin, exporter, mark, pack
from flyweight.export.check import check_parity
from flyweight.measure.analysis import analyse, analysed_batches
from flyweight.measure.error import folded, layer_errors
from flyweight.measure.layers import layer_reports, note_on_unused, notes_on
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import left_out
from flyweight.progress import Progress
from flyweight.recover.checkpoint import training_folder
from flyweight.recover.recover import Teaching, recover
from flyweight.report.write import write_reports
from flyweight.run.artifact import read_manifest
from flyweight.settings import Settings


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What all attempts share.

    Attributes:
        settings: Of the run.
        task: Settled on the data.
        splits: In the model's order of classes.
        model: The original.
        batches: Calibration batches, as model inputs.
        plans: (name, plan), in the order in which they are tried.
        original: The original's own artifact, scored.
        work: A folder for the attempts' files.
        notes: What the reports say beside their numbers.
        progress: Told of each stage.
    """

    settings: Settings
    task: Task
    splits: Splits
    model: Model
    batches: Sequence[Mapping[str, Tensor]]
    plans: tuple[tuple[str, Plan], ...]
    original: Subject
    work: Path
    notes: tuple[str, ...]
    progress: Progress


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """A compressed model, and the float model that its errors are measured against, layer by layer.

    Attributes:
        reference: Batch norms folded, layers reshaped and scaled as in ``model``.
        model: With frozen layers.
        errors: Of those layers.
        batches: They were measured on.
    """

    reference: Model
    model: Model
    errors: Mapping[str, LayerErrors]
    batches: Sequence[Mapping[str, Tensor]]


@final
@dataclass(frozen=True, eq=False)
class Tried:
    """One attempt that got as far as a report."""

    report: Report
    artifact: Artifact
    plan: Plan
    compared: Compared

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


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Made:
    """A plan carried out, trained and exported.

    Attributes:
        plan: What was carried out, which may be less than what was planned.
        planned: Profile of the model before lowering.
        told: Of what was left out, and of the training.
    """

    name: str
    plan: Plan
    model: Model
    planned: ModelProfile
    artifact: Artifact
    parity: Parity
    told: tuple[str, ...]


def attempt(run: Run, name: str, plan: Plan, before: tuple[Attempt, ...]) -> Tried:
    """Carry out one plan, export, measure and judge."""
    settings, progress = run.settings, run.progress
    made = _made(run, name, plan, run.work / f"attempt-{len(before)}")
    compressed = measured_subject(
        settings, made.model, made.artifact, run.task, run.splits, progress=progress
    )
    with progress.stage(f"Measuring {name}"):
        stored = exporter(settings.format).lower(made.planned)
        compared = _compared(run, made.model, made.plan)
        layers = layer_reports(run.model, made.plan, compared.errors, stored)
        measured = _measured(run, compressed)
    report = _report(run, made, layers=layers, measured=measured, before=before)
    return Tried(report, made.artifact, made.plan, compared)


def analysed(run: Run, tried: Tried) -> Tried:
    """The attempt with the analysis of where its quality is lost in the report."""
    compared = tried.compared
    analysis = analyse(
        compared.reference,
        compared.model,
        compared.errors,
        compared.batches,
        classes=run.task.class_targets is True,
        progress=run.progress,
    )
    return replace(tried, report=replace(tried.report, analysis=analysis))


def _made(run: Run, name: str, plan: Plan, folder: Path) -> _Made:
    """Carry out and export; ``folder`` must not exist."""
    before = profile(run.model)
    # what the format cannot hold is refused before any work
    exporter(run.settings.format).lower(predicted(plan, before))
    with run.progress.stage(f"Applying {name}"):
        applied = carry_out(run.model, plan, run.batches)
    model, training = _trained(run, applied.plan, applied.model, state=f"{folder.name}.safetensors")
    folder.mkdir()
    with run.progress.stage(f"Exporting {name}"):
        origin = origin_of(run.settings, run.splits)
        artifact = pack(model, applied.plan, folder, origin, "refused")  # until it is judged
        parity = check_parity(model, artifact, run.batches[0])
    return _Made(
        name=name,
        plan=applied.plan,
        model=model,
        planned=profile(model),
        artifact=artifact,
        parity=parity,
        told=(*note_on_unused(before), *left_out(name, plan), *applied.notes, *training),
    )


def _trained(run: Run, plan: Plan, model: Model, *, state: str) -> tuple[Model, tuple[str, ...]]:
    """The model after training, and what to say of it; itself where there is none."""
    settings = run.settings
    if not settings.training.epochs:
        return model, ()
    folder = training_folder(Path(settings.out))
    folder.mkdir(exist_ok=True)
    teaching = Teaching(
        task=run.task,
        splits=run.splits,
        batches=run.batches,
        settings=settings.training,
        seed=settings.data_settings.seed,
        storage=folder / state,
    )
    recovered = recover(run.model, model, plan, teaching, progress=run.progress)
    return recovered.model, recovered.sentences(run.task.metric_name)


def _compared(run: Run, model: Model, plan: Plan) -> Compared:
    """What comes before quantization is carried out in the reference too: layers correspond one by one."""
    before = tuple(d for d in plan.decisions if d.stage < Stage.QUANTIZE)
    original = apply(run.model, Plan(plan.model, before), run.batches) if before else run.model
    reference, batches = folded(original), analysed_batches(model, run.batches)
    errors = layer_errors(reference, model, batches)
    return Compared(reference=reference, model=model, errors=errors, batches=batches)


def _measured(run: Run, compressed: Subject) -> tuple[Measurement, Measurement, Comparison]:
    """(original, compressed, comparison), measured now."""
    settings = run.settings
    inputs = timed_inputs(_preprocess(run.model), run.task, run.splits, settings.batch_size)
    return measure(
        run.original, compressed, run.task, run.splits, inputs=inputs, conditions=_conditions(settings)
    )


def _report(
    run: Run,
    made: _Made,
    *,
    layers: tuple[LayerReport, ...],
    measured: tuple[Measurement, Measurement, Comparison],
    before: tuple[Attempt, ...],
) -> Report:
    """The judgement, and all it rests on."""
    original, compressed, comparison = measured
    verdict = judge(original, compressed, comparison, run.settings.budget)
    return Report(
        model=run.model.name,
        task=run.task.name,
        metric=run.task.metric_name,
        technique=made.name,
        runtime=run.settings.runtime,
        original=original,
        compressed=compressed,
        comparison=comparison,
        layers=layers,
        parity=made.parity,
        attempts=(*before, _outcome(made.name, compressed, comparison, verdict)),
        verdict=verdict,
        notes=_notes(run, made, layers, comparison),
        versions=dict(versions()),
        machine=dict(machine()),
        settings=run.settings.to_dict(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _outcome(name: str, compressed: Measurement, comparison: Comparison, verdict: Verdict) -> Attempt:
    return Attempt(
        name=name,
        storage_bytes=compressed.storage_bytes,
        speedup=comparison.speedup.value,
        quality_drop=comparison.quality_drop.value,
        outcome="shipped" if verdict.shipped else "; ".join(verdict.reasons),
    )


def _notes(run: Run, made: _Made, layers: tuple[LayerReport, ...], comparison: Comparison) -> tuple[str, ...]:
    return (
        *run.notes,
        *made.told,
        *notes_on(layers, made.planned),
        *_outputs_note(made.artifact),
        *_interaction_note(made.artifact, run.settings),
        *caveats(comparison, run.settings.budget),
    )


def _outputs_note(artifact: Artifact) -> tuple[str, ...]:
    outputs = [spec.name for spec in read_manifest(artifact.path).outputs]
    if len(outputs) == 1:
        return ()
    return (f"quality was measured on the first of {len(outputs)} outputs, {outputs[0]!r}, alone",)


def _interaction_note(artifact: Artifact, settings: Settings) -> tuple[str, ...]:
    if not read_manifest(artifact.path).examples_interact:
        return ()
    speed = f"; speed was measured at {settings.batch_size} a call" if settings.batch_size > 1 else ""
    return (
        "the ranges of its activations span all examples of a call: quality was measured one example a call, "
        f"as flyweight run answers{speed}",
    )


def measured_subject(
    settings: Settings, model: Model, artifact: Artifact, task: Task, splits: Splits, *, progress: Progress
) -> Subject:
    """The artifact in its runtime, scored on the evaluation split."""
    scores = scored(artifact, _conditions(settings), _preprocess(model), task, splits, progress=progress)
    counted = profile(model)
    macs = Counter({FLOAT_BITS: sum(module.macs for module in counted.float_modules)})
    for layer in counted.layers:
        macs[layer.activation_bits] += layer.macs
    return Subject(artifact=artifact, scores=scores, macs=macs)


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


def origin_of(settings: Settings, splits: Splits) -> Origin:
    """What a manifest says of where the artifact comes from."""
    return Origin(settings=with_roles(settings, splits.evaluation.roles), classes=splits.evaluation.classes)
