"""Convolutions as they are exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final, runtime_checkable

from torch import Tensor, nn

from flyweight.export import onnx_ops
from flyweight.export.onnx_inputs import ExportBias
from flyweight.export.onnx_integers import IntegerWeight
from flyweight.export.onnx_stored import CODES, Decoder
from flyweight.export.onnx_stored_forms import masked_codes
from flyweight.tensors.activation import ChannelQuantizer
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.encoded import EncodedLayer, compute


@runtime_checkable
class Kernel(Protocol):
    """A weight that is convolved with."""

    def __call__(self, bias: Callable[[], Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """The weight, (out, in, ...), and the bias as it is added, made from the stored one."""


@final
class ExportConvolution(nn.Module):
    """A grid of its own for what it reads, a kernel and a bias."""

    def __init__(self, layer: EncodedLayer, kernel: Kernel) -> None:
        super().__init__()
        self.layer = layer.layer
        self.kernel = kernel
        grid = layer.input_quantizer
        self.input_grid = grid if isinstance(grid, ChannelQuantizer) else None
        self.stored_bias = ExportBias(layer)

    @property
    def weight(self) -> Tensor:
        """(out, in, ...)."""
        return self.kernel(self.stored_bias)[0]

    @property
    def bias(self) -> Tensor | None:
        """As it is added."""
        return self.kernel(self.stored_bias)[1]

    def forward(self, x: Tensor) -> Tensor:
        if self.input_grid is not None:
            padded = nn.functional.pad(x, self.input_grid.padding)
            x = onnx_ops.channel_codes(padded, self.input_grid.scale, self.input_grid.zero_point)
        weight, bias = self.kernel(self.stored_bias)
        return compute(self.layer, x, weight, bias)


@final
class DecodedKernel(nn.Module):
    """Floats that are decoded as the file is loaded."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, bias: Callable[[], Tensor | None]) -> tuple[Tensor, Tensor | None]:
        return self.decoder(), bias()


@final
class IntegerKernel(nn.Module):
    """Integers that are made as the file is loaded."""

    def __init__(self, integers: IntegerWeight) -> None:
        super().__init__()
        self.integers = integers

    def forward(self, bias: Callable[[], Tensor | None]) -> tuple[Tensor, Tensor | None]:
        codes, scale = self.integers()
        weight: Tensor = onnx_ops.dequantize(codes, scale, None, 0, 0)
        return weight, self.integers.bias(scale, bias())


@final
class CodedKernel(nn.Module):
    """Codes of 8 bits, as they are stored, one scale a row or for all."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, weight: AffineWeight) -> None:
        super().__init__()
        by_row = weight.form.granularity != "tensor"
        zero = weight.zero_point
        self.narrow_types = dict[str, str]()
        self.register_buffer(CODES, masked_codes(weight).reshape(weight.shape))
        self.register_buffer("scale", weight.scale.reshape(-1 if by_row else ()))
        self.register_buffer("zero_point", None if zero is None else zero.reshape(-1 if by_row else ()))

    def forward(self, bias: Callable[[], Tensor | None]) -> tuple[Tensor, Tensor | None]:
        weight: Tensor = onnx_ops.dequantize(self.codes, self.scale, self.zero_point, 0, 0)
        return weight, bias()
