"""Operators that exist only while a model is exported, each with the ONNX nodes it becomes.

Writing them ourselves fixes the form of the file: integer initializers, scalar scales, and the exact patterns
that ONNX Runtime fuses into integer kernels (see DESIGN: what makes an ONNX file small and fast on CPU).
"""

# No `from __future__ import annotations`: torch reads the annotations of custom operators, and cannot resolve
# their texts when a type checker wraps the functions, as the tests do.
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flyweight.tensors.activation import TOKEN_HIGHEST, TOKEN_ZERO_POINT, UINT8_HIGHEST, DynamicQuantizer

OPSET = 21  # the first with 4-bit integers and block-wise scales


@torch.library.custom_op("flyweight::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """QuantizeLinear, then DequantizeLinear, with a scalar scale and a scalar uint8 zero point."""
    zero = zero_point.float()
    return (((x / scale).round() + zero).clamp(0, UINT8_HIGHEST) - zero) * scale


@torch.library.custom_op("flyweight::channel_codes", mutates_args=())
def channel_codes(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """QuantizeLinear with one scale and zero point a channel; the uint8 codes are then read with scale 1."""
    scales, zeros = (v.reshape(1, -1, 1, 1) for v in (scale, zero_point.float()))
    return ((x / scales).round() + zeros).clamp(0, UINT8_HIGHEST)


@torch.library.custom_op("flyweight::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block_size: int) -> Tensor:
    """DequantizeLinear of stored codes; ``block_size`` 0: one scale an index of ``axis``, or a scalar one."""

    def spread(values: Tensor) -> Tensor:
        if block_size:
            return values.repeat_interleave(block_size, axis).narrow(axis, 0, codes.shape[axis])
        if values.dim() == 0:
            return values
        return values.reshape([-1 if i == axis else 1 for i in range(codes.dim())])

    centred: Tensor = codes.float() if zero_point is None else codes.float() - spread(zero_point.float())
    return centred * spread(scale)


@torch.library.custom_op("flyweight::dynamic_matmul", mutates_args=())
def dynamic_matmul(x: Tensor, codes: Tensor, scale: Tensor, by_token: bool) -> Tensor:
    """Integer product of activations quantized at run time, (..., k), and stored codes, (k, n); float out."""
    rounded: Tensor = DynamicQuantizer("token" if by_token else "tensor")(x)
    return rounded @ (codes.float() * scale)


@torch.library.custom_op("flyweight::dynamic_round", mutates_args=())
def dynamic_round(x: Tensor) -> Tensor:
    """DynamicQuantizeLinear, then DequantizeLinear: for what no integer kernel multiplies."""
    rounded: Tensor = DynamicQuantizer("tensor")(x)
    return rounded


@torch.library.custom_op("flyweight::embed", mutates_args=())
def embed(codes: Tensor, scale: Tensor, zero_point: Tensor | None, ids: Tensor) -> Tensor:
    """Rows of an integer table, gathered before they are dequantized; one scale a row, or a scalar one."""

    def of_rows(values: Tensor) -> Tensor:
        return values if values.dim() == 0 else values[ids].unsqueeze(-1)

    centred = codes[ids].float()
    if zero_point is not None:
        centred = centred - of_rows(zero_point.float())
    return centred * of_rows(scale.float())


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


@channel_codes.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block_size: int) -> Tensor:
    return codes.new_empty(codes.shape, dtype=torch.float32)


@dynamic_matmul.register_fake
def _(x: Tensor, codes: Tensor, scale: Tensor, by_token: bool) -> Tensor:
    return x.new_empty([*x.shape[:-1], codes.shape[1]])


@dynamic_round.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@embed.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, ids: Tensor) -> Tensor:
    return codes.new_empty([*ids.shape, codes.shape[1]], dtype=torch.float32)


def translations() -> Mapping[Any, Callable[..., Any]]:
    """Each operator above, and the function that writes its ONNX nodes."""
    from onnxscript import FLOAT
    from onnxscript import opset21 as op

    def onnx_quantize_dequantize(x, scale, zero_point):  # type: ignore[no-untyped-def]
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)

    def onnx_channel_codes(x, scale, zero_point):  # type: ignore[no-untyped-def]
        codes = op.QuantizeLinear(x, scale, zero_point, axis=1)
        one = op.Constant(value_float=1.0)
        return op.DequantizeLinear(codes, one, op.Constant(value=_uint8_scalar(0)))

    def onnx_dequantize(codes, scale, zero_point, axis, block_size):  # type: ignore[no-untyped-def]
        if block_size:
            return op.DequantizeLinear(codes, scale, zero_point, axis=axis, block_size=block_size)
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    def onnx_dynamic_matmul(x, codes, scale, by_token):  # type: ignore[no-untyped-def]
        if by_token:
            return by_token_matmul(x, codes, scale)
        quantized, x_scale, zero_point = op.DynamicQuantizeLinear(x)
        product = op.Cast(op.MatMulInteger(quantized, codes, zero_point), to=FLOAT.dtype)
        return op.Mul(product, op.Mul(x_scale, scale))

    def onnx_dynamic_round(x):  # type: ignore[no-untyped-def]
        quantized, scale, zero_point = op.DynamicQuantizeLinear(x)
        return op.DequantizeLinear(quantized, scale, zero_point)

    def by_token_matmul(x: Any, codes: Any, scale: Any) -> Any:
        tokens = op.Reshape(x, op.Constant(value_ints=[-1, codes.shape[0]]))
        largest = op.ReduceMax(op.Abs(tokens), op.Constant(value_ints=[1]), keepdims=1)
        tiny = op.Constant(value_float=torch.finfo(torch.float32).tiny)
        token_scale = op.Max(op.Div(largest, op.Constant(value_float=float(TOKEN_HIGHEST))), tiny)
        middle = op.Constant(value=_uint8_scalar(TOKEN_ZERO_POINT))
        row_scale = op.Reshape(token_scale, op.Constant(value_ints=[-1]))
        row_zero = op.Expand(middle, op.Shape(row_scale))
        quantized = op.QuantizeLinear(tokens, row_scale, row_zero, axis=0)
        product = op.Cast(op.MatMulInteger(quantized, codes, middle), to=FLOAT.dtype)
        scaled = op.Mul(op.Mul(product, token_scale), scale)
        shape = op.Concat(op.Shape(x, start=0, end=-1), op.Constant(value_ints=[codes.shape[1]]), axis=0)
        return op.Reshape(scaled, shape)

    def onnx_embed(codes, scale, zero_point, ids):  # type: ignore[no-untyped-def]
        last = op.Constant(value_ints=[-1])

        def of_rows(values: Any) -> Any:
            if values.shape is None or len(values.shape) > 0:
                values = op.Unsqueeze(op.Gather(values, ids, axis=0), last)
            return op.Cast(values, to=FLOAT.dtype)

        # No DequantizeLinear: ONNX Runtime 1.31 moves one with a signed zero point through a transposition,
        # and then refuses what it made.
        centred = op.Cast(op.Gather(codes, ids, axis=0), to=FLOAT.dtype)
        if zero_point is not None:
            centred = op.Sub(centred, of_rows(zero_point))
        return op.Mul(centred, of_rows(scale))

    ops = torch.ops.flyweight
    return {
        ops.quantize_dequantize.default: onnx_quantize_dequantize,
        ops.channel_codes.default: onnx_channel_codes,
        ops.dequantize.default: onnx_dequantize,
        ops.dynamic_matmul.default: onnx_dynamic_matmul,
        ops.dynamic_round.default: onnx_dynamic_round,
        ops.embed.default: onnx_embed,
    }


def _uint8_scalar(value: int) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor("", TensorProto.UINT8, [], [value])
