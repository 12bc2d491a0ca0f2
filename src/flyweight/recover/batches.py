"""Training examples in batches: shuffled anew each epoch, preprocessed, augmented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flyweight.data.examples import Examples
from flyweight.recover.augmentation import Augment
from flyweight.recover.randomness import Stream, generator_at

if TYPE_CHECKING:
    from flyweight.data.preprocessing import Preprocessing


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Model inputs, (batch, ...), by name; ``labels`` are (batch,) class indices, or None."""

    inputs: Mapping[str, Tensor]
    labels: Tensor | None = None


@runtime_checkable
class Batches(Protocol):
    """Where a training finds what it learns from; the same place always holds the same batch."""

    def __len__(self) -> int:
        """Batches in one epoch."""

    def at(self, epoch: int, index: int) -> Batch:
        """The batch at a place of an epoch."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ExampleBatches:
    """Batches of examples.

    Attributes:
        examples: Raw.
        preprocessing: Makes model inputs of them.
        size: Of a batch; the examples that an epoch leaves over are taken in another.
        seed: Of the order and the augmentation.
        augment: See `flyweight.recover.augmentation.augmentation`.
        shuffled: Else every epoch has the examples in their order, and the last batch is smaller.
    """

    examples: Examples
    preprocessing: Preprocessing
    size: int
    seed: int = 0
    augment: Augment | None = None
    shuffled: bool = True

    def __len__(self) -> int:
        count = len(self.examples)
        return max(count // self.size, 1) if self.shuffled else -(-count // self.size)

    def at(self, epoch: int, index: int) -> Batch:
        """See `Batches`."""
        chosen = self._order(epoch)[index * self.size : (index + 1) * self.size]
        taken = self.examples.take(chosen)
        arrays = self.preprocessing(taken.inputs)
        inputs = {name: torch.from_numpy(value) for name, value in arrays.items()}
        if self.augment is not None:
            inputs = self.augment(inputs, generator_at(self.seed, Stream.AUGMENTATION, epoch, index))
        return Batch(inputs, _labels(taken))

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffled:
            return np.arange(len(self.examples))
        order = torch.randperm(len(self.examples), generator=generator_at(self.seed, Stream.ORDER, epoch))
        return order.numpy()


def _labels(examples: Examples) -> Tensor | None:
    """(batch,) class indices; None where the targets are none."""
    targets = examples.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iu":
        return None
    return torch.from_numpy(targets.astype(np.int64))
