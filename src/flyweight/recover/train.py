"""One loop that trains any module: any parameters, any loss, stopped and resumed at any step.

Modules compute as they do when they answer, but batch norms normalise by the batch. An interrupted training
goes on from its last state, and ends, bit for bit, as if nothing had happened: every random number is drawn
from its place in the training. Only a limit of time makes the result depend on the machine's speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from flyweight.errors import UnsupportedError
from flyweight.measure.graph import BATCH_NORMS
from flyweight.progress import SILENT, Progress
from flyweight.recover.batches import Batch, Batches
from flyweight.recover.checkpoint import (
    Point,
    State,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from flyweight.recover.optimizer import ParameterGroup, make_optimizer, rate_factor, set_learning_rate
from flyweight.recover.randomness import forward_randomness
from flyweight.recover.settings import TrainingSettings

CHECKPOINT_S = 30.0  # between two states that are written
SMOOTHING = 0.98  # of the loss that is shown: about the last fifty steps


@final
@dataclass(frozen=True)
class Validation:
    """How well a model does on examples it is not trained on; higher metrics are better."""

    loss: float
    metric: float | None = None

    def better_than(self, other: Validation) -> bool:
        """By the metric; by the loss where metrics are equal or missing."""
        if self.metric is None or other.metric is None or self.metric == other.metric:
            return self.loss < other.loss
        return self.metric > other.metric


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """What is trained, on what, towards what.

    Attributes:
        module: Changed in place.
        groups: The parameters that are trained, all of them the module's.
        batches: To learn from.
        loss: Of the module on a batch, with gradients, and finite.
        validate: Measures the module as it is.
        settings: ``optimizer`` and ``learning_rate`` are settled.
        seed: Of whatever modules draw.
        after_step: Told the part of the training that is done, after each step: may change parameters.
    """

    module: nn.Module
    groups: Sequence[ParameterGroup]
    batches: Batches
    loss: Callable[[Batch], Tensor]
    validate: Callable[[], Validation]
    settings: TrainingSettings
    seed: int = 0
    after_step: Callable[[float], None] = lambda done: None

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.settings.epochs * len(self.batches)


@final
@dataclass(frozen=True)
class Storage:
    """Where the state of a training is kept.

    Attributes:
        path: The file.
        run: What tells this training from others.
        every_s: Seconds between two states that are written.
    """

    path: Path
    run: str
    every_s: float = CHECKPOINT_S


@final
@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training came to; the module is in its best state.

    Attributes:
        epochs: Passes over the data; the last may be unfinished.
        steps: Of all epochs.
        seconds: In all runs together, if there was more than one.
        before: On the examples held out, before.
        after: Likewise, in the state that was kept.
        best_epoch: The epoch after which that was; 0 is before the training.
    """

    epochs: float
    steps: int
    seconds: float
    before: Validation
    after: Validation
    best_epoch: int


def train(training: Training, *, storage: Storage | None = None, progress: Progress = SILENT) -> Trained:
    """Train, and leave the module in the state that did best on the examples held out.

    Args:
        training: What, on what, towards what.
        storage: Where the state is kept, and a training that was interrupted goes on from, if ``settings``
            says so; None keeps nothing.
        progress: Shown the loss, the metric and the time that is left.

    Raises:
        InputError: The state that was kept is of another training.
        UnsupportedError: The loss is not finite.
    """
    return _Loop(training, storage).run(progress)


@contextmanager
def batch_norms_learn(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms normalise by the batch and follow its statistics."""
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS)]
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for norm in norms:
            norm.eval()


@final
class _Loop:
    def __init__(self, training: Training, storage: Storage | None) -> None:
        self._training, self._storage = training, storage
        self._optimizer = make_optimizer(training.groups, training.settings)
        self._trained = [p for group in training.groups for p in group.parameters]
        self._point, self._best = Point(), dict[str, Tensor]()
        self._shown_loss: float | None = None
        self._last_metric: float | None = None
        self._started = self._written = time.monotonic()
        self._spent_before = 0.0

    def run(self, progress: Progress) -> Trained:
        if not self._resumed():
            self._begin()
        if not self._point.ended:
            for step in progress.track(range(self._point.step, self._training.steps), self._label):
                self._step(step)
                if self._point.ended:
                    break
        self._put(self._best)
        return self._result()

    def _begin(self) -> None:
        first = self._training.validate()
        self._last_metric = first.metric
        self._point = Point(
            first_metric=first.metric,
            first_loss=first.loss,
            best_metric=first.metric,
            best_loss=first.loss,
        )
        self._best = self._copied()

    def _step(self, step: int) -> None:
        """One step, and what is due after it."""
        self._learn(step)
        epoch, left_over = divmod(step + 1, len(self._training.batches))
        ends = step + 1 == self._training.steps or self._out_of_time()
        if ends or not left_over:
            ends |= self._end_epoch(epoch + (left_over > 0))
            self._point = replace(self._point, ended=ends)
            self._keep()
        elif self._storage is not None and time.monotonic() - self._written >= self._storage.every_s:
            self._keep()

    def _learn(self, step: int) -> None:
        training, settings = self._training, self._training.settings
        size = len(training.batches)
        set_learning_rate(
            self._optimizer,
            settings.learning_rate or 0.0,
            rate_factor(self._done(step + 0.5), settings.warm_up),
        )
        batch = training.batches.at(step // size, step % size)
        with batch_norms_learn(training.module), forward_randomness(training.seed, step):
            loss = training.loss(batch)
        value = float(loss.detach())
        if not abs(value) < float("inf"):
            raise UnsupportedError(
                f"training fails: the loss is {value} at step {step + 1} of {training.steps}; "
                "a lower --learning-rate may help"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        nn.utils.clip_grad_norm_(self._trained, settings.clip_norm)
        self._optimizer.step()
        self._point = replace(self._point, step=step + 1, seconds=self._seconds())
        training.after_step(self._done(float(step + 1)))
        before = value if self._shown_loss is None else self._shown_loss
        self._shown_loss = SMOOTHING * before + (1 - SMOOTHING) * value

    def _end_epoch(self, epoch: int) -> bool:
        """Keep the state if it is the best; whether patience is at its end.

        One of a larger loss than before training is not: on few examples a metric rises by chance.
        """
        found, best, first = self._training.validate(), self._best_validation(), self._point.first_loss
        self._last_metric = found.metric
        if found.better_than(best) and (first is None or found.loss <= first):
            self._point = replace(
                self._point, best_epoch=epoch, best_metric=found.metric, best_loss=found.loss
            )
            self._best = self._copied()
        patience = self._training.settings.patience
        return patience is not None and epoch - self._point.best_epoch >= patience

    def _best_validation(self) -> Validation:
        return Validation(self._point.best_loss or 0.0, self._point.best_metric)

    def _done(self, steps: float) -> float:
        """The part of the training that is behind, by steps or by time, whichever is further."""
        limit = self._training.settings.train_seconds
        by_time = 0.0 if limit is None else self._seconds() / limit
        return min(max(steps / max(self._training.steps, 1), by_time), 1.0)

    def _out_of_time(self) -> bool:
        limit = self._training.settings.train_seconds
        return limit is not None and self._seconds() >= limit

    def _seconds(self) -> float:
        return self._spent_before + time.monotonic() - self._started

    def _result(self) -> Trained:
        point = self._point
        return Trained(
            epochs=point.step / len(self._training.batches),
            steps=point.step,
            seconds=point.seconds,
            before=Validation(point.first_loss or 0.0, point.first_metric),
            after=self._best_validation(),
            best_epoch=point.best_epoch,
        )

    def _label(self) -> str:
        loss = "" if self._shown_loss is None else f", loss {self._shown_loss:.4f}"
        metric = "" if self._last_metric is None else f", held out {self._last_metric:.4f}"
        epoch = min(self._point.step // len(self._training.batches) + 1, self._training.settings.epochs)
        return f"Training, epoch {epoch} of {self._training.settings.epochs}{loss}{metric}"

    def _keep(self) -> None:
        """Write the state."""
        if self._storage is None:
            return
        state = State(
            point=self._point,
            now=self._changing(),
            best=self._best,
            optimizer=optimizer_tensors(self._optimizer),
        )
        write_checkpoint(self._storage.path, state, self._storage.run)
        self._written = time.monotonic()

    def _resumed(self) -> bool:
        """Whether the state that was kept is loaded."""
        storage = self._storage
        if storage is None or not self._training.settings.resume or not storage.path.exists():
            return False
        state = read_checkpoint(storage.path, storage.run)
        self._put(state.now)
        load_optimizer(self._optimizer, state.optimizer)
        self._point, self._best = state.point, dict(state.best)
        self._spent_before = state.point.seconds
        self._last_metric = state.point.best_metric
        return True

    def _changing(self) -> dict[str, Tensor]:
        """What training changes, by name: parameters, and the statistics of batch norms."""
        module, trained = self._training.module, {id(p) for p in self._trained}
        named: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if id(p) in trained}
        for path, norm in module.named_modules():
            if isinstance(norm, BATCH_NORMS):
                named |= {f"{path}.{name}": buffer for name, buffer in norm.named_buffers(recurse=False)}
        return named

    def _copied(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._changing().items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        """Give the module these values, in place."""
        own = self._changing()
        if {n: v.shape for n, v in own.items()} != {n: v.shape for n, v in values.items()}:
            raise UnsupportedError("the training state holds other parameters than the model has")
        for name, value in values.items():
            own[name].copy_(value)
