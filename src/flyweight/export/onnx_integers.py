"""Weights stored in few bits and multiplied as integers of 8, which they become as the file is loaded.

Affine codes of few bits are such integers. Everything else (a scale a group, tables, floats) is decoded and
rounded to 8 bits with one scale a row, which moves the layer's output a little: who asks for it has measured
how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from flyweight.export import onnx_ops, onnx_stored_ops
from flyweight.export.onnx_stored import CODES, ZERO_POINT, Decoder, narrow_types
from flyweight.export.onnx_stored_forms import as_affine, stored
from flyweight.techniques._static_inputs import LARGEST_BIAS_CODE, LEAST_STEP
from flyweight.tensors.encoded import EncodedLayer, EncodedWeight

HIGHEST = 127  # of the integers, lowest -127
MOST_EXACT_BITS = 7  # whose codes, less their zero point, are such integers
MIDDLE = "middle"  # the zero point of integers: always 0


def is_exact(encoding: EncodedWeight) -> bool:
    """Whether the stored codes are integers already, one scale a row."""
    affine = as_affine(encoding)
    return affine is not None and affine.scale.shape[1] == 1 and affine.form.bits <= MOST_EXACT_BITS


def on_one_grid(weight: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """Integers of the weight's shape, and (rows,) scales of at least ``least``: what the file computes."""
    axes = list(range(1, weight.dim()))
    smallest = max(least, torch.finfo(torch.float32).tiny)
    scale = (weight.abs().amax(axes, keepdim=True) * (1 / HIGHEST)).clamp_min(smallest)
    return (weight / scale).round().to(torch.int8), scale.reshape(-1)


@final
class IntegerWeight(nn.Module):
    """Called, gives integers of the weight's shape and their scales, (rows,) or a scalar.

    Args:
        layer: Whose weight it is.
        called_once: The layer reads one value, so that its bias can be a sum of products of codes.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    input_scale: Tensor | None
    sums: Tensor | None

    def __init__(self, layer: EncodedLayer, *, called_once: bool) -> None:
        super().__init__()
        encoding = layer.encoding()
        self.decoder: Decoder | None = None
        self.narrow_types: Mapping[str, str] = {}
        self.least = 0.0
        bias = None if isinstance(layer.layer, nn.Embedding) else layer.layer.bias
        if layer.input_scale is not None and bias is not None:
            self.least = float(bias.detach().abs().max() / LARGEST_BIAS_CODE / layer.input_scale)
        if is_exact(encoding):
            found = stored(encoding)
            self.narrow_types = narrow_types(found.width)
            self.register_buffer(CODES, found.codes)
            scale = found.scale
            self.register_buffer("scale", scale if scale is None or scale.dim() == 0 else scale.reshape(-1))
            self.register_buffer(ZERO_POINT, found.zero_point)
        else:
            self.decoder = Decoder(stored(encoding))
        self._store_bias(layer, bias if called_once else None)

    def forward(self) -> tuple[Tensor, Tensor]:
        if self.decoder is not None:
            return on_one_grid(self.decoder(), self.least)
        codes: Tensor = onnx_stored_ops.integers(self.codes, self.zero_point)
        return codes, self.scale

    def bias(self, scale: Tensor, stored_bias: Tensor | None) -> Tensor | None:
        """In integer sums where they hold it, else as it is; ``scale`` is that of the integers."""
        if self.sums is None or self.input_scale is None:
            return stored_bias
        found: Tensor = onnx_ops.dequantize(self.sums, scale * self.input_scale, None, 0, 0)
        return found

    def _store_bias(self, layer: EncodedLayer, bias: Tensor | None) -> None:
        sums = None
        if bias is not None and layer.input_scale is not None:
            steps = self()[1] * layer.input_scale
            codes = bias.detach() / steps
            if bool(steps.min() >= LEAST_STEP) and bool(codes.abs().max() <= LARGEST_BIAS_CODE):
                sums = codes.round().to(torch.int32)
        self.register_buffer("sums", sums)
        self.register_buffer("input_scale", None if sums is None else layer.input_scale)
