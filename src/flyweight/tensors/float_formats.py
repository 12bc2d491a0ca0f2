"""Weights in narrower floating-point formats; those of 8 bits with a scale a row.

Source: IEEE 754-2019 (float16); Kalamkar et al. 2019, arXiv:1905.12322 (bfloat16); Micikevicius et al. 2022,
arXiv:2209.05433 (the two of 8 bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flyweight.core.layer import FloatFormat
from flyweight.tensors.affine import SCALE_BITS, as_matrix
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.stored import Stored

FLOAT_FORMATS: tuple[str, ...] = get_args(FloatFormat)
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in FLOAT_FORMATS}


@final
@dataclass(frozen=True)
class FloatForm:
    """How a weight is stored: rounded to nearest, ties to even.

    Limits: weights of float16 and bfloat16 are not scaled. What is too large for the format is refused; what
    is too small loses digits, and below half its least magnitude, 3e-8 of float16, becomes 0.
    """

    format: FloatFormat = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """Of a stored weight."""
        return DTYPES[self.format]

    @property
    def bits(self) -> int:
        """Of a stored weight."""
        return torch.finfo(self.dtype).bits

    @property
    def scaled(self) -> bool:
        """Whether each row has a scale, which makes its largest magnitude the largest of the format."""
        return self.bits == 8

    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        """Bits of floats, scales and, where only ``kept`` weights are not removed, a mask."""
        floats, mask = (rows * columns, 0) if kept is None else (kept, rows * columns)
        return floats * self.bits + rows * self.scaled * SCALE_BITS + mask


@final
@dataclass(frozen=True, eq=False)
class FloatWeight(Stored):
    """``w = values * scale``.

    Attributes:
        values: (rows, columns) of ``form.dtype``.
        scale: (rows, 1), above 0; None where the form has none.
        shape: Of the decoded weight; rows is its first axis.
        mask: (rows, columns), True where a weight is kept; None where all are.
    """

    values: Float[Tensor, "rows columns"]
    scale: Float[Tensor, "rows 1"] | None
    form: FloatForm
    shape: tuple[int, ...]
    mask: Bool[Tensor, "rows columns"] | None = None

    def decode(self) -> Tensor:
        """The weight as float32, of ``shape``."""
        weight = self.values.float()
        return (weight if self.scale is None else weight * self.scale).reshape(self.shape)


def encode_float(weight: Tensor, form: FloatForm, mask: Bool[Tensor, " ..."] | None = None) -> FloatWeight:
    """The closest floats of another format.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        mask: Of the weight's shape; weights where it is False become 0.

    Raises:
        ValueError: The weight is empty, not finite, or too large for a format without scales.
    """
    matrix, flat_mask = as_matrix(weight, mask)
    if not form.scaled:
        values = matrix.to(form.dtype)
        if not bool(torch.isfinite(values).all()):
            most, largest = float(matrix.abs().max()), torch.finfo(form.dtype).max
            raise ValueError(
                f"weights up to {most:.6g} are too large for {form.format}, which ends at {largest:.6g}"
            )
        return FloatWeight(values, None, form, tuple(weight.shape), flat_mask)
    largest = torch.finfo(form.dtype).max
    scale = (matrix.abs().amax(1, keepdim=True) / largest).clamp_min(torch.finfo(torch.float32).tiny)
    values = (matrix / scale).clamp(-largest, largest).to(form.dtype)
    return FloatWeight(values, scale, form, tuple(weight.shape), flat_mask)


@final
class FloatEncoder(nn.Module):
    """Encodes as `encode_float` does, keeping the mask of the stage before."""

    def __init__(self, form: FloatForm) -> None:
        super().__init__()
        self.form = form

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> FloatWeight:
        """The weight as it is stored."""
        return encode_float(weight, self.form, None if before is None else before.mask)
