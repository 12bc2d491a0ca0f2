"""What a layer reads and adds, as it is exported: rounded inputs, and biases of floats or integer sums."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from flyweight.errors import UnsupportedError
from flyweight.export import onnx_ops
from flyweight.tensors.activation import INTEGER_BITS, DynamicQuantizer, StaticQuantizer
from flyweight.tensors.encoded import EncodedLayer


def check_activation_bits(name: str, bits: int) -> None:
    """Raise UnsupportedError for a layer that reads fewer bits than integer kernels do."""
    if bits < INTEGER_BITS:
        raise UnsupportedError(
            f"layer {name!r} reads {bits}-bit activations, and only PyTorch computes with fewer than "
            f"{INTEGER_BITS}: leave them at {INTEGER_BITS}, or measure the plan with flyweight evaluate"
        )


def dynamic_quantizer(layer: EncodedLayer) -> DynamicQuantizer | None:
    """That of a layer whose input is rounded on ranges found at run time."""
    quantizer = layer.input_quantizer
    return quantizer if isinstance(quantizer, DynamicQuantizer) else None


@final
class ExportQuantizer(nn.Module):
    """Rounds on a fixed grid."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: StaticQuantizer) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = onnx_ops.quantize_dequantize(x, self.scale, self.zero_point)
        return rounded


@final
class ExportDynamicQuantizer(nn.Module):
    """Rounds on a range found at run time, for what no integer kernel multiplies."""

    def __init__(self, quantizer: DynamicQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        by_token = self.quantizer.granularity == "token"
        rounded: Tensor = self.quantizer(x) if by_token else onnx_ops.dynamic_round(x)
        return rounded


@final
class ExportBias(nn.Module):
    """A bias as stored: float, or int32 codes with a scale."""

    sums: Tensor | None
    scale: Tensor

    def __init__(self, layer: EncodedLayer) -> None:
        super().__init__()
        bias = None if isinstance(layer.layer, nn.Embedding) else layer.layer.bias
        scale = layer.bias_scale()
        self.rounded = bias is not None and scale is not None
        if bias is not None and scale is not None:
            self.register_buffer("sums", (bias.detach() / scale).round().to(torch.int32))
            self.register_buffer("scale", scale if scale.numel() > 1 else scale.reshape(()))
        else:
            self.register_buffer("sums", None if bias is None else bias.detach())

    def forward(self) -> Tensor | None:
        if not self.rounded:
            return self.sums
        bias: Tensor = onnx_ops.dequantize(self.sums, self.scale, None, 0, 0)
        return bias
