"""Each stored form as the file holds it."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor
from torch.nn import functional as F

from flyweight.errors import UnsupportedError
from flyweight.export.onnx_blocks import width_of
from flyweight.export.onnx_stored import Stored
from flyweight.tensors.affine import AffineForm, AffineWeight, over_columns
from flyweight.tensors.binary import BinaryWeight
from flyweight.tensors.codebook import CodebookWeight
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.float_formats import FloatWeight
from flyweight.tensors.grouping import grouped
from flyweight.tensors.normal_float import NormalFloatWeight, normal_table
from flyweight.tensors.vector import VectorWeight


def as_affine(encoding: EncodedWeight) -> AffineWeight | None:
    """The same weight as affine codes: binary and ternary ones take 2 bits; None where there are none."""
    if isinstance(encoding, AffineWeight):
        return encoding
    if not isinstance(encoding, BinaryWeight):
        return None
    size = encoding.form.group_size
    form = AffineForm(bits=2, granularity="group" if size else "channel", group_size=size)
    scale = torch.where(encoding.scale > 0, encoding.scale, 1.0)
    kept = over_columns((encoding.scale > 0).float(), form, encoding.signs.shape[1])
    return AffineWeight(
        encoding.signs * kept.to(torch.int8), scale, None, form, encoding.shape, encoding.mask
    )


def masked_codes(weight: AffineWeight) -> Tensor:
    """Codes in which a pruned weight is the code of 0."""
    if weight.mask is None:
        return weight.codes
    if weight.zero_point is None:
        return torch.where(weight.mask, weight.codes, torch.zeros_like(weight.codes))
    zero = over_columns(weight.zero_point.float(), weight.form, weight.codes.shape[1])
    return torch.where(weight.mask, weight.codes, zero.to(weight.codes.dtype).expand_as(weight.codes))


@singledispatch
def stored(encoding: EncodedWeight) -> Stored:
    """What the file holds of a weight, to be decoded.

    Raises:
        UnsupportedError: The form has no counterpart in ONNX.
    """
    raise UnsupportedError(f"a {type(encoding).__name__} cannot be written to an ONNX file")


@stored.register
def _affine(weight: AffineWeight) -> Stored:
    codes, form, zero = masked_codes(weight), weight.form, weight.zero_point
    columns = codes.shape[1]
    if form.granularity == "group" and form.group_size < columns:
        codes = grouped(codes, form.group_size)
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


@stored.register
def _binary(weight: BinaryWeight) -> Stored:
    affine = as_affine(weight)
    return _affine(affine) if affine is not None else stored(weight)


@stored.register
def _codebook(weight: CodebookWeight) -> Stored:
    codes, table = weight.codes, weight.table
    if weight.mask is not None:  # what was removed has an entry of its own, at the end
        codes = torch.where(weight.mask, codes.int(), table.shape[1])
        table = F.pad(table, (0, 1))
    by_row = len(table) > 1
    width = width_of((table.shape[1] - 1).bit_length())
    return Stored(
        codes=_of_width(codes, width),
        width=width,
        columns=codes.shape[1],
        shape=weight.shape,
        unsigned=True,
        table=table if by_row else table.reshape(-1),
        by_row=by_row,
    )


@stored.register
def _normal_float(weight: NormalFloatWeight) -> Stored:
    codes, size, table = weight.codes, weight.form.group_size, normal_table(weight.form.bits)
    zero = int(table.abs().argmin())
    if weight.mask is not None:
        codes = torch.where(weight.mask, codes, zero)
    columns = codes.shape[1]
    wide = size and size < columns
    placed = F.pad(codes, (0, -columns % size), value=zero).reshape(len(codes), -1, size) if wide else codes
    width = width_of(weight.form.bits)
    return Stored(
        codes=_of_width(placed, width),
        width=width,
        columns=columns,
        shape=weight.shape,
        unsigned=True,
        table=table,
        scale=weight.scale[..., None] if wide else weight.scale,
    )


@stored.register
def _vector(weight: VectorWeight) -> Stored:
    width = width_of((len(weight.table) - 1).bit_length())
    return Stored(
        codes=_of_width(weight.codes, width),
        width=width,
        columns=weight.size[1],
        shape=weight.shape,
        unsigned=True,
        table=weight.table,
    )


@stored.register
def _float(weight: FloatWeight) -> Stored:
    return Stored(
        codes=weight.values,
        width=weight.form.bits,
        columns=weight.values.shape[1],
        shape=weight.shape,
        scale=weight.scale,
    )


def _of_width(codes: Tensor, width: int) -> Tensor:
    """Places in a table, as torch holds them."""
    return codes.to(torch.int16 if width > 8 else torch.uint8)
