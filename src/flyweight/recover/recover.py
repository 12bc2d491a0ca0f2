"""Recovery: the compressed model learns from the original what compression cost it.

The original's outputs are the targets, so labels are not needed. A part of the training data is held out to
choose the best state by; the evaluation data are not touched, and training examples that are evaluation
examples too are left out.

Source: Polino et al. 2018, arXiv:1802.05668, section 3 (quantized students).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor, nn

from flyweight.apply import check_promises, predicted
from flyweight.core.plan import Plan
from flyweight.core.protocols import Task
from flyweight.data.examples import Examples, Splits
from flyweight.data.leaks import row_digests
from flyweight.data.splits import split
from flyweight.errors import InputError, UnsupportedError
from flyweight.evaluate.machine import machine
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.progress import SILENT, Progress
from flyweight.recover.augmentation import augmentation
from flyweight.recover.batch_norms import normalised
from flyweight.recover.batches import ExampleBatches
from flyweight.recover.lesson import Lesson
from flyweight.recover.optimizer import default_learning_rate
from flyweight.recover.quantization import Trainable, finished, trainable
from flyweight.recover.settings import TrainingSettings
from flyweight.recover.train import CHECKPOINT_S, Storage, Trained, Training, train
from flyweight.settings import DataSettings

HELD_OUT_MOST = 2000  # examples: enough to tell states of a training apart, and no long pause
FINGERPRINTED = 16  # training examples that tell one training from another


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Teaching:
    """What a recovery has to teach with.

    Attributes:
        task: Settled on the data.
        splits: Raw examples; ``evaluation`` is only looked at to leave its examples out.
        batches: Calibration batches, as model inputs.
        settings: With at least one epoch.
        seed: Of everything random.
        storage: The file that keeps the state of the training; None keeps none.
        state_every_s: Seconds between two states that are written.
    """

    task: Task
    splits: Splits
    batches: Sequence[Mapping[str, Tensor]]
    settings: TrainingSettings
    seed: int = 0
    storage: Path | None = None
    state_every_s: float = CHECKPOINT_S


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Recovered:
    """A compressed model after training.

    Attributes:
        model: With frozen layers, which keep what the plan promised.
        trained: How it went.
        what: What was trained, in words.
        examples: That were learned from.
        left_out: Training examples that are evaluation examples too.
        precision: That it was computed in.
    """

    model: Model
    trained: Trained
    what: tuple[str, ...]
    examples: int
    left_out: int
    precision: str

    def sentences(self, metric: str) -> tuple[str, ...]:
        """For a report."""
        trained, before, after = self.trained, self.trained.before, self.trained.after
        shown = "" if before.metric is None else f", {metric} {before.metric:.4f} to {after.metric:.4f}"
        told = (
            f"trained for {trained.epochs:.3g} epochs on {self.examples} examples in {trained.seconds:.0f} s "
            f"({', '.join(self.what)}; {self.precision}): on training examples held out, loss "
            f"{before.loss:.4g} to {after.loss:.4g}{shown}, after epoch {trained.best_epoch}"
        )
        if not self.left_out:
            return (told,)
        return (told, f"{self.left_out} training examples that are evaluation examples too were left out")


def recover(
    original: Model, compressed: Model, plan: Plan, teaching: Teaching, *, progress: Progress = SILENT
) -> Recovered:
    """A copy of ``compressed`` that learned from ``original``, with the same layers in the same forms.

    Args:
        original: The teacher.
        compressed: What `flyweight.apply.apply` made of it with ``plan``.
        plan: See ``compressed``.
        teaching: Data and settings.
        progress: Shown the training.

    Raises:
        InputError: The data cannot be learned from, or the state that was kept is of another training.
        UnsupportedError: Nothing can be trained, or the loss does not stay finite.
        ContractError: The trained model is not what the plan promised.
    """
    settings = _settled(teaching.settings, compressed.module)
    examples, left_out = _unseen(teaching.splits)
    seed = teaching.seed
    parts = split(examples, DataSettings(evaluation_fraction=_held_out(settings, len(examples)), seed=seed))
    student = trainable(
        compressed.clone(),
        settings,
        batches=teaching.batches,
        had_norms=normalised(original) if settings.batch_norms == "kept" else (),
    )
    if not student.what:
        raise UnsupportedError(f"model {compressed.name!r} has no parameters to train")
    lesson = Lesson(student.model, original, teaching.task, parts, settings, teaching.batches[0])
    queries = lesson.queries(parts.train)
    batches = ExampleBatches(
        examples=queries,
        preprocessing=lesson.preprocessing,
        size=settings.train_batch_size,
        seed=seed,
        augment=augmentation(settings.augment),
    )
    training = Training(
        module=student.model.module,
        groups=student.groups,
        batches=batches,
        loss=lesson.loss,
        validate=lesson.validate,
        settings=settings,
        seed=seed,
    )
    storage = None
    if teaching.storage is not None:
        run = _fingerprint(plan, student, settings, seed, queries)
        storage = Storage(teaching.storage, run, every_s=teaching.state_every_s)
    trained = train(training, storage=storage, progress=progress)
    finished(student)
    check_promises(predicted(plan, profile(original)), profile(student.model))
    return Recovered(
        model=student.model,
        trained=trained,
        what=student.what,
        examples=len(queries),
        left_out=left_out,
        precision=settings.precision,
    )


def _settled(settings: TrainingSettings, module: nn.Module) -> TrainingSettings:
    """With every ``auto`` decided."""
    convolves = any(isinstance(m, nn.Conv1d | nn.Conv2d) for m in module.modules())
    optimizer = settings.optimizer
    if optimizer == "auto":
        optimizer = "sgd" if convolves else "adamw"
    rate = settings.learning_rate or default_learning_rate(optimizer, settings.tune)
    precision = settings.precision
    if precision == "auto":
        multiplies = "avx512_bf16" in machine().get("instruction sets", "").split()
        precision = "bfloat16" if multiplies else "float32"
    return replace(settings, optimizer=optimizer, learning_rate=rate, precision=precision)


def _unseen(splits: Splits) -> tuple[Examples, int]:
    """The training examples that are no evaluation examples, and how many are."""
    if splits.train is splits.evaluation:
        raise InputError(
            "the data hold no training examples but those that quality is measured on: nothing can be trained"
        )
    seen = np.isin(row_digests(splits.train), row_digests(splits.evaluation))
    if seen.all():
        raise InputError("every training example is an evaluation example too: nothing can be trained")
    return (splits.train.take(np.flatnonzero(~seen)) if seen.any() else splits.train), int(seen.sum())


def _held_out(settings: TrainingSettings, count: int) -> float:
    return min(settings.held_out, HELD_OUT_MOST / max(count, 1))


def _fingerprint(
    plan: Plan, student: Trainable, settings: TrainingSettings, seed: int, queries: Examples
) -> str:
    """A digest of all that decides how the training goes."""
    shapes = {name: list(p.shape) for name, p in student.model.module.named_parameters()}
    some = queries.take(np.linspace(0, len(queries) - 1, min(len(queries), FINGERPRINTED)).astype(np.int64))
    told = {
        "plan": plan.to_json(),
        "shapes": shapes,
        "settings": asdict(replace(settings, resume=False)),
        "seed": seed,
        "examples": len(queries),
        "some": row_digests(some).tolist(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=dict).encode()).hexdigest()
