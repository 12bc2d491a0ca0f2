"""Normal floats: codes into a table that the number of bits fixes; a group's largest magnitude is its scale.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E (NF4).
Differs: any width; scales stay float32, not quantized once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from flyweight.tensors.affine import SCALE_BITS, as_matrix
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.grouping import check_group_size, group_count, grouped, ungrouped
from flyweight.tensors.kmeans import nearest
from flyweight.tensors.stored import Stored


@final
@dataclass(frozen=True, kw_only=True)
class NormalFloatForm:
    """How a weight is stored.

    Attributes:
        bits: 2..8, of a code.
        group_size: Columns of a row that share a scale, the last group may be shorter; 0 is the whole row.
    """

    bits: int = 4
    group_size: int = 64

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {self.bits}")
        if self.group_size != 0:
            check_group_size(self.group_size)

    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        """Bits of codes, scales and, where only ``kept`` weights are not removed, a mask."""
        codes, mask = (rows * columns, 0) if kept is None else (kept, rows * columns)
        return codes * self.bits + rows * group_count(columns, self.group_size) * SCALE_BITS + mask


@cache
def normal_table(bits: int) -> Float[Tensor, " entries"]:
    """The 2**bits values, ascending from -1 to 1: quantiles of a normal distribution, 0 among them.

    Half of them are above 0; the others below, and 0. Of both halves the outermost probability is the mean of
    half a step of 2**bits and of 2**bits - 1 even ones (appendix E of the source).
    """
    half = 1 << (bits - 1)
    outermost = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    above, below = (
        torch.special.ndtri(torch.linspace(outermost, 0.5, count, dtype=torch.float64))
        for count in (half + 1, half)
    )
    values = torch.cat([above, -below[:-1]]).sort().values  # either ends with 0, the quantile of 1/2
    return (values / values.abs().max()).float()


@final
@dataclass(frozen=True, eq=False)
class NormalFloatWeight(Stored):
    """``w = normal_table(bits)[codes] * scale``.

    Attributes:
        codes: (rows, columns), places in the table.
        scale: (rows, groups), the largest magnitude of each group.
        shape: Of the decoded weight; rows is its first axis.
        mask: (rows, columns), True where a weight is kept; None where all are.
    """

    codes: UInt8[Tensor, "rows columns"]
    scale: Float[Tensor, "rows groups"]
    form: NormalFloatForm
    shape: tuple[int, ...]
    mask: Bool[Tensor, "rows columns"] | None = None

    def decode(self) -> Tensor:
        """The weight as float32, of ``shape``."""
        values = grouped(normal_table(self.form.bits)[self.codes.long()], self.form.group_size)
        weight = ungrouped(values * self.scale[..., None], self.codes.shape[1])
        return (weight if self.mask is None else weight * self.mask).reshape(self.shape)


def encode_normal_float(
    weight: Tensor, form: NormalFloatForm, mask: Bool[Tensor, " ..."] | None = None
) -> NormalFloatWeight:
    """Each weight as the closest value of the table, once its group is scaled to -1..1.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        mask: Of the weight's shape; weights where it is False become 0.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    matrix, flat_mask = as_matrix(weight, mask)
    groups = grouped(matrix, form.group_size)
    scale = groups.abs().amax(-1)
    steps = torch.where(scale[..., None] > 0, groups / scale[..., None], 0.0)
    codes = nearest(steps.reshape(1, -1), normal_table(form.bits)[None]).reshape(steps.shape)
    found = ungrouped(codes, matrix.shape[1]).to(torch.uint8)
    return NormalFloatWeight(found, scale, form, tuple(weight.shape), flat_mask)


@final
class NormalFloatEncoder(nn.Module):
    """Encodes as `encode_normal_float` does, keeping the mask of the stage before."""

    def __init__(self, form: NormalFloatForm) -> None:
        super().__init__()
        self.form = form

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> NormalFloatWeight:
        """The weight as it is stored."""
        return encode_normal_float(weight, self.form, None if before is None else before.mask)
