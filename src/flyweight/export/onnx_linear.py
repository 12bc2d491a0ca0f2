"""Linear layers as they are exported."""

from __future__ import annotations

from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from flyweight.export import onnx_ops
from flyweight.export.onnx_inputs import ExportBias, ExportDynamicQuantizer, dynamic_quantizer
from flyweight.export.onnx_integers import MIDDLE, IntegerWeight
from flyweight.export.onnx_packed import Packed
from flyweight.export.onnx_stored import CODES, Decoder
from flyweight.export.onnx_stored_forms import masked_codes
from flyweight.tensors.activation import DynamicQuantizer
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.encoded import EncodedLayer


def exported_float(layer: EncodedLayer) -> nn.Module:
    """A layer whose weight is stored as floats."""
    inner, quantizer = layer.layer, dynamic_quantizer(layer)
    inner.weight = nn.Parameter(layer.encoding().decode(), requires_grad=False)
    return inner if quantizer is None else ExportRounded(layer, quantizer)


@runtime_checkable
class Product(Protocol):
    """A weight that is multiplied by."""

    def weight(self) -> Tensor:
        """(out, in), for modules that read it themselves."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` (..., in) times its transpose, and the bias."""


@final
class ExportRounded(nn.Module):
    """A layer of float weights, whose input is rounded at run time nevertheless."""

    factors: Tensor | None

    def __init__(self, layer: EncodedLayer, quantizer: DynamicQuantizer) -> None:
        super().__init__()
        self.computed = layer.layer
        self.quantizer = ExportDynamicQuantizer(quantizer)
        self.register_buffer("factors", layer.input_factors)

    @property
    def weight(self) -> Tensor:
        """For modules that read it themselves."""
        return self.computed.weight if self.factors is None else self.computed.weight * self.factors

    @property
    def bias(self) -> Tensor | None:
        """For the same."""
        bias: Tensor | None = self.computed.bias  # type: ignore[assignment]
        return bias

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.computed(self.quantizer(x if self.factors is None else x * self.factors))
        return product


@final
class ExportLinear(nn.Module):
    """Smoothing factors, a product and a bias."""

    factors: Tensor | None

    def __init__(self, layer: EncodedLayer, product: Product) -> None:
        super().__init__()
        self.product = product
        self.stored_bias = ExportBias(layer)
        self.register_buffer("factors", layer.input_factors)

    @property
    def weight(self) -> Tensor:
        """(out, in), for modules that read it themselves."""
        weight = self.product.weight()
        return weight if self.factors is None else weight * self.factors

    @property
    def bias(self) -> Tensor | None:
        """As it is added, for the same."""
        bias: Tensor | None = self.stored_bias()
        return bias

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x if self.factors is None else x * self.factors, self.bias)


@final
class DecodedProduct(nn.Module):
    """By floats that are decoded as the file is loaded; a dynamic range still rounds what is read."""

    def __init__(self, decoder: Decoder, quantizer: DynamicQuantizer | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.quantizer = None if quantizer is None else ExportDynamicQuantizer(quantizer)

    def weight(self) -> Tensor:
        """(out, in)."""
        decoded: Tensor = self.decoder()
        return decoded

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x if self.quantizer is None else self.quantizer(x), self.decoder(), bias)


@final
class BlockProduct(nn.Module):
    """By packed codes, at an accuracy level of MatMulNBits, which rounds what it reads itself."""

    def __init__(self, packed: Packed, level: int) -> None:
        super().__init__()
        self.packed, self.level = packed, level

    def weight(self) -> Tensor:
        """(out, in)."""
        return self.packed.decoded()

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        product = self.packed.product(x, self.level)
        return product if bias is None else product + bias


@final
class IntegerProduct(nn.Module):
    """By integers that are made as the file is loaded, of inputs rounded on a fixed or dynamic range."""

    middle: Tensor | None

    def __init__(self, integers: IntegerWeight, quantizer: DynamicQuantizer | None) -> None:
        super().__init__()
        self.integers = integers
        self.by_token = None if quantizer is None else quantizer.granularity == "token"
        # ONNX Runtime fuses no Gemm or MatMul without a zero point.
        zero = torch.zeros_like(integers()[1], dtype=torch.int8) if quantizer is None else None
        self.register_buffer(MIDDLE, zero)

    def weight(self) -> Tensor:
        """(out, in)."""
        return self._dequantized().T

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        codes, scale = self.integers()
        if self.by_token is not None:
            product: Tensor = onnx_ops.dynamic_matmul(x, codes.T, scale, self.by_token)
            return product if bias is None else product + bias
        if x.dim() == 2:  # Gemm, the one form whose bias joins the integer sums
            added = self.integers.bias(scale, bias)
            return x @ self._dequantized() if added is None else torch.addmm(added, x, self._dequantized())
        product = x @ self._dequantized()
        return product if bias is None else product + bias

    def _dequantized(self) -> Tensor:
        """(in, out)."""
        codes, scale = self.integers()
        weight: Tensor = onnx_ops.dequantize(codes.T, scale, self.middle, 1 if scale.dim() else 0, 0)
        return weight


@final
class CodedProduct(nn.Module):
    """By codes of 8 bits, as they are stored."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, layer: EncodedLayer, weight: AffineWeight) -> None:
        super().__init__()
        self.quantizer = dynamic_quantizer(layer)
        self.rounds_bias = layer.bias_scale() is not None
        by_row = weight.form.granularity != "tensor"
        self.narrow_types = dict[str, str]()
        # MatMulInteger takes no zero points of weights
        self.integer = self.quantizer is not None and weight.zero_point is None
        self.axis = 1 if by_row else 0
        # (in, out): MatMul reads it as it is
        self.register_buffer(CODES, masked_codes(weight).T.contiguous())
        self.register_buffer("scale", weight.scale.reshape(-1 if by_row else ()))
        zero = weight.zero_point
        if zero is None and layer.input_scale is not None:
            # ONNX Runtime fuses no Gemm or MatMul without one.
            zero = torch.zeros_like(weight.scale, dtype=torch.int8)
        self.register_buffer("zero_point", None if zero is None else zero.reshape(-1 if by_row else ()))

    def weight(self) -> Tensor:
        """(out, in)."""
        return self._dequantized().T

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor
        if self.quantizer is not None and self.integer:
            by_token = self.quantizer.granularity == "token"
            product = onnx_ops.dynamic_matmul(x, self.codes, self.scale, by_token)
            return product if bias is None else product + bias
        if self.quantizer is not None:
            x = ExportDynamicQuantizer(self.quantizer)(x)
        weight = self._dequantized()
        if x.dim() == 2 and bias is not None and self.rounds_bias:
            return torch.addmm(bias, x, weight)  # Gemm, the one form whose bias joins the integer sums
        product = x @ weight
        return product if bias is None else product + bias

    def _dequantized(self) -> Tensor:
        """(in, out)."""
        weight: Tensor = onnx_ops.dequantize(self.codes, self.scale, self.zero_point, self.axis, 0)
        return weight
