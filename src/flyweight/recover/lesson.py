"""What a student is taught by a teacher: the loss of a batch, and how well it does on examples held out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.core.protocols import Task
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError, UnsupportedError
from flyweight.model import Model, tensors_of
from flyweight.recover.batches import Batch, ExampleBatches
from flyweight.recover.losses import distillation_for
from flyweight.recover.settings import TrainingSettings
from flyweight.recover.train import Validation

if TYPE_CHECKING:
    from flyweight.data.preprocessing import Preprocessing

NEIGHBOURS_MOST = 2000  # training examples among which the nearest of one held out is looked for


@final
class Lesson:
    """A student, its teacher, and the examples held out.

    Args:
        student: Trained; its module is called as it is.
        teacher: Its first output is learned from.
        task: Gives the metric, and by its name the loss.
        parts: ``evaluation`` is what is held out.
        settings: ``precision`` is settled.
        sample: Model inputs on which the kind of the outputs is seen.
    """

    def __init__(
        self,
        student: Model,
        teacher: Model,
        task: Task,
        parts: Splits,
        settings: TrainingSettings,
        sample: Mapping[str, Tensor],
    ) -> None:
        if teacher.preprocessing is None:
            raise InputError(f"model {teacher.name!r} has no preprocessing: open it with flyweight.load.open")
        self.preprocessing: Preprocessing = teacher.preprocessing
        self._student, self._teacher, self._task = student, teacher, task
        near = np.linspace(0, len(parts.train) - 1, min(len(parts.train), NEIGHBOURS_MOST)).astype(np.int64)
        self._parts = Splits(parts.train.take(near), parts.calibration, parts.evaluation)
        self._precision = settings.precision
        self._distillation = distillation_for(
            task.name,
            teacher.outputs(sample)[0],
            kind=settings.outputs,
            temperature=settings.temperature,
            label_weight=settings.label_weight,
        )
        self._convolves = any(isinstance(m, nn.Conv2d) for m in student.module.modules())
        self._held_out = ExampleBatches(
            examples=task.queries(self._parts),
            preprocessing=self.preprocessing,
            size=settings.train_batch_size,
            shuffled=False,
        )
        self._taught: list[Tensor] = []

    def queries(self, examples: Examples) -> Examples:
        """What the models are run on to learn from the examples."""
        first = examples.take(np.arange(min(1, len(examples))))
        return self._task.queries(Splits(train=first, calibration=first, evaluation=examples))

    def loss(self, batch: Batch) -> Tensor:
        """Of the student on a batch, with gradients."""
        inputs = self._laid_out(batch.inputs)
        with self._computing():
            with torch.no_grad():
                wanted = _first(self._teacher, inputs)
            found = _first(self._student, inputs)
        _check_shapes(found, wanted)
        return self._distillation(found.float(), wanted.float(), inputs, batch.labels)

    @torch.no_grad()
    def validate(self) -> Validation:
        """Loss and metric on the examples held out, in float32 and without augmentation or labels."""
        losses, outputs = [], []
        for index in range(len(self._held_out)):
            inputs = self._laid_out(self._held_out.at(0, index).inputs)
            if index == len(self._taught):
                self._taught.append(_first(self._teacher, inputs))
            found, wanted = _first(self._student, inputs), self._taught[index]
            losses.append(float(self._distillation(found, wanted, inputs, None)) * len(found))
            outputs.append(found.float().numpy())
        scores = self._task.score(np.concatenate(outputs), self._parts)
        return Validation(sum(losses) / sum(map(len, outputs)), self._task.metric(scores))

    def _laid_out(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images in the order of memory in which CPU kernels convolve them fastest."""
        if not self._convolves:
            return dict(inputs)
        images = torch.channels_last
        return {n: v.contiguous(memory_format=images) if v.dim() == 4 else v for n, v in inputs.items()}

    def _computing(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._precision == "bfloat16")


def _first(model: Model, inputs: Mapping[str, Tensor]) -> Tensor:
    return tensors_of(model.module(**inputs), model.name)[0]


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise UnsupportedError(
            f"the compressed model puts out {tuple(student.shape)} and the original {tuple(teacher.shape)}: "
            "it cannot learn from it"
        )
