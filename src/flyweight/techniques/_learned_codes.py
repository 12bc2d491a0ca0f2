"""What a layer computes with while its rounding is learned: codes between whole numbers, rounded inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from flyweight.tensors.activation import DynamicQuantizer, straight_through
from flyweight.tensors.affine import AffineWeight, over_columns
from flyweight.tensors.encoded import EncodedWeight


@final
class LearnedCodes(nn.Module):
    """The encoder of one layer while it learns: codes between whole numbers, and changes of scales."""

    def __init__(self, stored: AffineWeight) -> None:
        super().__init__()
        self.stored = stored
        self.steps = nn.Parameter(stored.codes.float())
        self.stretch = nn.Parameter(torch.zeros_like(stored.scale))

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> AffineWeight:
        """As it would be stored now."""
        grid, old = self.stored.form.grid, self.stored
        codes = self.steps.detach().clamp(grid.lowest, grid.highest).round().to(old.codes.dtype)
        return replace(old, codes=codes, scale=self._scale().detach())

    def projected(self, weight: Tensor, before: EncodedWeight | None = None) -> Tensor:
        """The decoded weight, with gradients to codes and scales."""
        grid, mask = self.stored.form.grid, self.stored.mask
        steps = self.steps.clamp(grid.lowest, grid.highest)
        centred = straight_through(steps, steps.round()) - self._zero(steps.shape[1])
        decoded = centred * self._wide(self._scale())
        return (decoded if mask is None else decoded * mask).reshape(weight.shape)

    def _scale(self) -> Tensor:
        return self.stored.scale * self.stretch.exp()

    def _wide(self, scale: Tensor) -> Tensor:
        return over_columns(scale, self.stored.form, self.stored.codes.shape[1])

    def _zero(self, columns: int) -> Tensor:
        zero = self.stored.zero_point
        return torch.zeros(()) if zero is None else over_columns(zero.float(), self.stored.form, columns)


@final
class RoundedInputs(nn.Module):
    """Rounds what a layer reads; while it learns, values at random stay as they are."""

    def __init__(self, bits: int, drop: float, seed: int) -> None:
        super().__init__()
        self._rounds, self._drop, self.learns = DynamicQuantizer("tensor", bits), drop, False
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = self._rounds(x)
        if not self.learns:
            return rounded
        stays = torch.rand(x.shape, generator=self._generator) < self._drop
        return torch.where(stays, x, rounded)
