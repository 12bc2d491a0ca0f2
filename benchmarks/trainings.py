"""Models quantized far, then trained by the original: what the training gives back, on test examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from benchmarks.claims import FLOAT, OURS, Check, Context, compared
from flyweight.apply import apply
from flyweight.core.plan import Plan
from flyweight.core.protocols import Task
from flyweight.data.examples import Splits
from flyweight.data.load import open_data
from flyweight.evaluate.evaluate import evaluate
from flyweight.load.open import open_model
from flyweight.measure.calibrate import calibration_batches
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import candidates
from flyweight.recover.recover import Recovered, Teaching, recover
from flyweight.recover.settings import TrainingSettings
from flyweight.run.pytorch import PyTorchRuntime
from flyweight.settings import DataSettings, Settings
from flyweight.tasks.open import open_task, settle

UNTRAINED = "the same without training"
QUICK = DataSettings(evaluation_size=500)


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to quantize, and how much it may cost after training.

    Attributes:
        name: In words, ``"W2A8"``.
        techniques: As ``--technique`` takes them, ``"weight_only+static_activations"``.
        settings: Of the techniques.
        epochs: Of the training.
        largest_drop: Of accuracy, against the float model.
    """

    name: str
    techniques: str
    settings: Mapping[str, bool | int | float | str]
    epochs: int
    largest_drop: float


@final
@dataclass(frozen=True, eq=False)
class Opened:
    """A model with its data."""

    model: Model
    task: Task
    splits: Splits


def opened(model: str, weights: Path, data: str, context: Context) -> Opened:
    """Model and data as `flyweight compress` opens them; of a quick run, fewer test examples."""
    chosen = QUICK if context.quick else DataSettings()
    settings = Settings(model=model, weights=str(weights), data=data, out=".", data_settings=chosen)
    task = open_task(settings.task, settings.task_settings)
    splits = open_data(settings.data, settings.data_settings, class_targets=task.class_targets)
    task = settle(task, splits)
    found = open_model(settings, splits, task)
    return Opened(found.model, task, found.splits)


def checks(
    subject: Opened, case: Case, training: TrainingSettings, context: Context
) -> tuple[list[Check], list[str]]:
    """Accuracy, drop and size of one case, and what to tell of its training."""
    model, task = subject.model, subject.task
    ((_, plan),) = candidates(profile(model), (case.techniques,), case.settings)
    batches = calibration_batches(model, task, subject.splits)
    untrained = apply(model, plan, batches)
    recovered = _trained(subject, untrained, plan, case, training, context)
    accuracy = {
        name: _accuracy(subject, one)
        for name, one in ((FLOAT, model), (UNTRAINED, untrained), (OURS, recovered.model))
    }
    drop = {name: accuracy[FLOAT] - value for name, value in accuracy.items()}
    sizes = {name: profile(one).storage_bytes for name, one in ((FLOAT, model), (OURS, recovered.model))}
    found = [
        compared(f"{case.name}: accuracy", accuracy),
        compared(f"{case.name}: drop of accuracy", drop, bar=case.largest_drop, direction="at most"),
        Check(what=f"{case.name}: times smaller than fp32, weights", ours=sizes[FLOAT] / sizes[OURS]),
        Check(what=f"{case.name}: time of the training, s", ours=recovered.trained.seconds),
    ]
    return found, [f"{case.name}: {told}" for told in recovered.sentences(task.metric_name)]


def _trained(
    subject: Opened,
    untrained: Model,
    plan: Plan,
    case: Case,
    training: TrainingSettings,
    context: Context,
) -> Recovered:
    folder = context.work if context.kept is None else context.kept
    folder.mkdir(parents=True, exist_ok=True)
    teaching = Teaching(
        task=subject.task,
        splits=subject.splits,
        batches=calibration_batches(subject.model, subject.task, subject.splits),
        settings=replace(training, epochs=1 if context.quick else case.epochs, resume=True),
        storage=folder / f"{case.name.replace(' ', '_')}.safetensors",
    )
    return recover(subject.model, untrained, plan, teaching)


def _accuracy(subject: Opened, model: Model) -> float:
    """On test examples, in PyTorch: no runtime computes with every width that is measured here."""
    assert subject.model.preprocessing is not None
    session = PyTorchRuntime().load(model, 0)
    scores = evaluate(session, subject.model.preprocessing, subject.task, subject.splits)
    return subject.task.metric(scores)
