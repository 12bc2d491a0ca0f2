"""Weights whose codes stay while what they stand for is learned: scales, zero points, lookup tables.

Source: Chen et al. 2024, arXiv:2407.11062, section 3.3 (end-to-end training of quantization parameters); Han
et al. 2015, arXiv:1510.00149, section 3.3 (of a lookup table).
Differs: zero points, which are whole, are learned with the gradient passed straight through their rounding.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from flyweight.tensors.activation import straight_through
from flyweight.tensors.affine import AffineWeight, over_columns
from flyweight.tensors.binary import BinaryWeight
from flyweight.tensors.codebook import CodebookWeight, looked_up
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.grouping import grouped, ungrouped

Learnable = AffineWeight | BinaryWeight | CodebookWeight


@final
class KeptCodes(nn.Module):
    """An encoder that gives one encoding, whatever the weight, with values that are learned.

    Args:
        stored: Whose codes are kept.
    """

    zero_point: Tensor | None

    def __init__(self, stored: Learnable) -> None:
        super().__init__()
        self._stored = stored
        values = stored.table if isinstance(stored, CodebookWeight) else stored.scale
        self.values = nn.Parameter(values.clone())
        zero_point = stored.zero_point if isinstance(stored, AffineWeight) else None
        self.zero_point = None if zero_point is None else nn.Parameter(zero_point.float())

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> Learnable:
        """The weight as it is stored now."""
        stored, values = self._stored, self._positive().detach()
        if isinstance(stored, CodebookWeight):
            return _sorted(replace(stored, table=self.values.detach()))
        if isinstance(stored, BinaryWeight):
            return replace(stored, scale=values)
        zero = None if stored.zero_point is None else self._whole().detach().to(stored.zero_point.dtype)
        return replace(stored, scale=values, zero_point=zero)

    def projected(self, weight: Tensor, before: EncodedWeight | None = None) -> Tensor:
        """The decoded weight, with gradients to what is learned."""
        stored = self._stored
        if isinstance(stored, CodebookWeight):
            return looked_up(self.values, stored).reshape(stored.shape)
        gentle = 1 / math.sqrt(weight.numel() / self.values.numel())
        scale = _gently(self._positive(), gentle)
        if isinstance(stored, BinaryWeight):
            groups = grouped(stored.signs.float(), stored.form.group_size) * scale[..., None]
            return ungrouped(groups, stored.signs.shape[1]).reshape(stored.shape)
        columns = stored.codes.shape[1]
        centred = stored.codes.float()
        if self.zero_point is not None:
            centred = centred - over_columns(_gently(self._whole(), gentle), stored.form, columns)
        decoded = centred * over_columns(scale, stored.form, columns)
        return (decoded if stored.mask is None else decoded * stored.mask).reshape(stored.shape)

    def _positive(self) -> Tensor:
        return self.values.clamp_min(torch.finfo(torch.float32).tiny)

    def _whole(self) -> Tensor:
        assert isinstance(self._stored, AffineWeight)
        assert self.zero_point is not None
        grid = self._stored.form.grid
        inside = self.zero_point.clamp(grid.lowest, grid.highest)
        return straight_through(inside, inside.round())


def _gently(values: Tensor, damping: float) -> Tensor:
    """The same values with a smaller gradient: one scale gathers those of many weights."""
    return values * damping + (values * (1 - damping)).detach()


def _sorted(stored: CodebookWeight) -> CodebookWeight:
    """The same weight with its tables in ascending order, as they are stored."""
    table, order = stored.table.sort(1)
    places = order.argsort(1).expand(len(stored.codes), -1)
    codes = places.gather(1, stored.codes.long()).to(stored.codes.dtype)
    return replace(stored, table=table, codes=codes)
