"""Operators on what the file stores, while a model is exported; each with the ONNX nodes it becomes.

These nodes read constants alone: runtimes carry them out once, as they load the file, and compute with what
comes out, floats or codes of 8 bits.
"""

# No `from __future__ import annotations`: see onnx_ops.
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("flyweight::decode", mutates_args=())
def decode(
    values: Tensor, scale: Tensor | None, zero_point: Tensor | None, columns: int, shape: Sequence[int]
) -> Tensor:
    """``(values - zero_point) * scale`` as float32, without what fills up the last group, of ``shape``.

    Args:
        values: Codes or floats, of ``shape``, or (rows, groups, columns of a group).
        scale: Broadcasts against ``values``.
        zero_point: The same.
        columns: Of a row.
        shape: Of the weight.
    """
    centred = values.float() if zero_point is None else values.float() - zero_point.float()
    return _cut(centred if scale is None else centred * scale, columns, shape).clone()


@torch.library.custom_op("flyweight::integers", mutates_args=())
def integers(codes: Tensor, zero_point: Tensor | None) -> Tensor:
    """``codes - zero_point`` as int8, which holds the difference of codes of at most 7 bits."""
    return codes.clone() if zero_point is None else codes - zero_point


@torch.library.custom_op("flyweight::look_up", mutates_args=())
def look_up(table: Tensor, codes: Tensor, by_row: bool) -> Tensor:
    """``table[codes]``; ``by_row``, the codes of each row in a table of its own, (rows, entries)."""
    return table.gather(1, codes.long()) if by_row else table[codes.long()]


def _cut(values: Tensor, columns: int, shape: Sequence[int]) -> Tensor:
    if values.numel() == torch.Size(shape).numel():
        return values.reshape(shape)
    return values.flatten(1)[:, :columns].reshape(shape)


@decode.register_fake
def _(
    values: Tensor, scale: Tensor | None, zero_point: Tensor | None, columns: int, shape: Sequence[int]
) -> Tensor:
    return values.new_empty(shape, dtype=torch.float32)


@integers.register_fake
def _(codes: Tensor, zero_point: Tensor | None) -> Tensor:
    return torch.empty_like(codes)


@look_up.register_fake
def _(table: Tensor, codes: Tensor, by_row: bool) -> Tensor:
    return table.new_empty([*codes.shape, *table.shape[1 + by_row :]])


def stored_translations() -> Mapping[Any, Callable[..., Any]]:
    """Each operator above, and the function that writes its ONNX nodes."""
    from onnxscript import FLOAT, INT8, INT32
    from onnxscript import opset21 as op

    def ints(values: Sequence[int]) -> Any:
        return op.Constant(value_ints=list(values))

    def as_float(values: Any) -> Any:
        return values if values.dtype == FLOAT.dtype else op.Cast(values, to=FLOAT.dtype)

    def cut(values: Any, stored: Any, columns: int, shape: Sequence[int]) -> Any:
        before = [int(size) for size in stored.shape]
        if before == list(shape):
            return values
        width = torch.Size(before[1:]).numel()
        if width != columns:
            flat = values if len(before) == 2 else op.Reshape(values, ints([before[0], width]))
            values, before = op.Slice(flat, ints([0]), ints([columns]), ints([1])), [before[0], columns]
        return values if before == list(shape) else op.Reshape(values, ints(shape))

    def centred(values: Any, zero_point: Any) -> Any:
        found = as_float(values)
        return found if zero_point is None else op.Sub(found, as_float(zero_point))

    def onnx_decode(values, scale, zero_point, columns, shape):  # type: ignore[no-untyped-def]
        found = centred(values, zero_point)
        return cut(found if scale is None else op.Mul(found, as_float(scale)), values, columns, shape)

    def onnx_integers(codes, zero_point):  # type: ignore[no-untyped-def]
        return op.Cast(codes if zero_point is None else centred(codes, zero_point), to=INT8.dtype)

    def onnx_look_up(table, codes, by_row):  # type: ignore[no-untyped-def]
        places = op.Cast(codes, to=INT32.dtype)
        return op.GatherElements(table, places, axis=1) if by_row else op.Gather(table, places, axis=0)

    ops = torch.ops.flyweight
    return {
        ops.decode.default: onnx_decode,
        ops.integers.default: onnx_integers,
        ops.look_up.default: onnx_look_up,
    }
