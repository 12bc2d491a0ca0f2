"""Each stored form as the file holds it: narrow codes and floats that are decoded when the file is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.export import onnx_stored_ops
from flyweight.export.onnx_blocks import width_of
from flyweight.tensors.affine import AffineForm, AffineWeight
from flyweight.tensors.binary import BinaryWeight
from flyweight.tensors.encoded import EncodedWeight

CODES = "codes"  # buffers of this name are called weights in the file
ZERO_POINT = "zero_point"
NARROW_WIDTHS = (2, 4)  # that torch has no type for


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """What is stored of a weight.

    Attributes:
        codes: Of the weight's shape, or (rows, groups, columns of a group), the last group filled up: codes
            of ``width`` bits, or floats.
        width: Of a code; 32 for floats as they are.
        unsigned: Whether codes are places in ``table``.
        table: (entries, ...) what codes stand for, None where they are numbers.
        by_row: Whether each row has a table of its own, (rows, entries).
        scale: Broadcasts against the codes.
        zero_point: The same.
        columns: Of a row.
        shape: Of the decoded weight.
    """

    codes: Tensor
    width: int
    columns: int
    shape: tuple[int, ...]
    unsigned: bool = False
    table: Tensor | None = None
    by_row: bool = False
    scale: Tensor | None = None
    zero_point: Tensor | None = None


@final
class Decoder(nn.Module):
    """Called, gives the decoded weight.

    Attributes:
        narrow_types: Names of buffers to the integer type that the file stores them in.
    """

    codes: Tensor
    table: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.columns, self.shape, self.by_row = stored.columns, stored.shape, stored.by_row
        self.narrow_types = narrow_types(stored.width, unsigned=stored.unsigned)
        self.register_buffer(CODES, stored.codes)
        self.register_buffer("table", stored.table)
        self.register_buffer("scale", stored.scale)
        self.register_buffer(ZERO_POINT, stored.zero_point)

    def forward(self) -> Tensor:
        values = self.codes
        if self.table is not None:
            values = onnx_stored_ops.look_up(self.table, values, self.by_row)
        weight: Tensor = onnx_stored_ops.decode(
            values, self.scale, self.zero_point, self.columns, list(self.shape)
        )
        return weight


def narrow_types(width: int, *, unsigned: bool = False) -> Mapping[str, str]:
    """The ONNX type of codes and zero points of a width that torch has no type for."""
    if width not in NARROW_WIDTHS:
        return {}
    name = f"{'U' * unsigned}INT{width}"
    return {CODES: name, ZERO_POINT: name}


def as_affine(encoding: EncodedWeight) -> AffineWeight | None:
    """The same weight as affine codes: binary and ternary ones take 2 bits; None where there are none."""
    if isinstance(encoding, AffineWeight):
        return encoding
    if not isinstance(encoding, BinaryWeight):
        return None
    size = encoding.form.group_size
    form = AffineForm(bits=2, granularity="group" if size else "channel", group_size=size)
    return AffineWeight(encoding.signs, encoding.scale, None, form, encoding.shape, encoding.mask)


def stored_affine(weight: AffineWeight) -> Stored:
    """Codes, scales and zero points, as they are."""
    codes, form, zero = masked_codes(weight), weight.form, weight.zero_point
    columns = codes.shape[1]
    if form.granularity == "group" and form.group_size < columns:
        padded = F.pad(codes, (0, -columns % form.group_size))
        codes = padded.reshape(len(codes), -1, form.group_size)
        scale, zero = weight.scale[..., None], None if zero is None else zero[..., None]
    else:
        codes = codes.reshape(weight.shape)
        scale, zero = _on_rows(weight.scale, weight), None if zero is None else _on_rows(zero, weight)
    return Stored(
        codes=codes,
        width=width_of(form.bits),
        columns=columns,
        shape=weight.shape,
        scale=scale,
        zero_point=zero,
    )


def _on_rows(values: Tensor, weight: AffineWeight) -> Tensor:
    """What a row or the whole weight shares, so that it broadcasts against its shape."""
    return values.reshape(() if values.numel() == 1 else (-1, *[1] * (len(weight.shape) - 1)))


def masked_codes(weight: AffineWeight) -> Tensor:
    """Codes in which a pruned weight is the code of 0."""
    if weight.mask is None:
        return weight.codes
    zero = torch.zeros_like(weight.codes) if weight.zero_point is None else _wide(weight.zero_point, weight)
    return torch.where(weight.mask, weight.codes, zero)


def _wide(values: Tensor, weight: AffineWeight) -> Tensor:
    rows, columns = weight.codes.shape
    if weight.form.granularity != "group":
        return values.expand(rows, columns)
    return values.repeat_interleave(weight.form.group_size, 1)[:, :columns]
