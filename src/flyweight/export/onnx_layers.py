"""Frozen layers as they are exported: stored codes instead of float weights."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from flyweight.errors import UnsupportedError
from flyweight.export import onnx_ops
from flyweight.tensors.activation import INTEGER_BITS, ChannelQuantizer, DynamicQuantizer, StaticQuantizer
from flyweight.tensors.affine import AffineWeight, fits_half
from flyweight.tensors.encoded import EncodedLayer, compute, encoded_layers, exchange

CODES = "codes"  # buffers of this name hold codes; the file gives them the width the form asks for


def to_export_form(root: nn.Module) -> None:
    """Replace every encoded layer and static quantizer by what is exported for it, in place.

    Raises:
        UnsupportedError: A stored form has no ONNX counterpart.
    """
    for name, layer in list(encoded_layers(root)):
        quantizer = layer.input_quantizer
        bits = quantizer.bits if isinstance(quantizer, DynamicQuantizer) else layer.input_bits
        check_activation_bits(name, bits)
        made = _export_layer(name, layer)
        for setting in set(type(layer.layer).__constants__) - set(dir(made)):
            setattr(made, setting, getattr(layer.layer, setting))  # the model's code may read it
        exchange(root, layer, made)
    for module in list(root.modules()):
        if isinstance(module, StaticQuantizer):
            exchange(root, module, _ExportQuantizer(module))


def check_activation_bits(name: str, bits: int) -> None:
    """Raise UnsupportedError for a layer that reads fewer bits than integer kernels do."""
    if bits < INTEGER_BITS:
        raise UnsupportedError(
            f"layer {name!r} reads {bits}-bit activations, and only PyTorch computes with fewer than "
            f"{INTEGER_BITS}: leave them at {INTEGER_BITS}, or measure the plan with flyweight evaluate"
        )


def _export_layer(name: str, layer: EncodedLayer) -> nn.Module:
    encoding = layer.encoding()
    if not isinstance(encoding, AffineWeight):
        inner = layer.layer
        inner.weight = nn.Parameter(encoding.decode(), requires_grad=False)
        quantizer = layer.input_quantizer
        return _ExportRounded(layer, quantizer) if isinstance(quantizer, DynamicQuantizer) else inner
    if isinstance(layer.layer, nn.Embedding):
        return _ExportEmbedding(encoding)
    if isinstance(layer.layer, nn.Linear):
        return _ExportLinear(layer, encoding)
    return _ExportConvolution(layer, encoding)


def _masked_codes(weight: AffineWeight) -> Tensor:
    """Codes in which a pruned weight is the code of 0."""
    if weight.mask is None:
        return weight.codes
    zero = (
        torch.zeros_like(weight.codes)
        if weight.zero_point is None
        else weight.zero_point.expand_as(weight.codes)
    )
    return torch.where(weight.mask, weight.codes, zero)


def _scales(values: Tensor, form_granularity: str) -> Tensor:
    """As DequantizeLinear takes them: a scalar, one a row, or (rows, groups)."""
    if form_granularity == "tensor":
        return values.reshape(())
    return values.reshape(-1) if form_granularity == "channel" else values


def _transposed(values: Tensor) -> Tensor:
    return values.T.contiguous() if values.dim() == 2 else values


@final
class _ExportQuantizer(nn.Module):
    def __init__(self, quantizer: StaticQuantizer) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        rounded: Tensor = onnx_ops.quantize_dequantize(x, self.scale, self.zero_point)
        return rounded


@final
class _ExportDynamicQuantizer(nn.Module):
    def __init__(self, quantizer: DynamicQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        by_token = self.quantizer.granularity == "token"
        rounded: Tensor = self.quantizer(x) if by_token else onnx_ops.dynamic_round(x)
        return rounded


@final
class _ExportRounded(nn.Module):
    """A layer whose weight no integer kernel reads, and whose input is rounded at run time nevertheless."""

    factors: Tensor | None

    def __init__(self, layer: EncodedLayer, quantizer: DynamicQuantizer) -> None:
        super().__init__()
        self.computed = layer.layer
        self.quantizer = _ExportDynamicQuantizer(quantizer)
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


class _Bias(nn.Module):
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


@final
class _ExportLinear(nn.Module):
    factors: Tensor | None
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, layer: EncodedLayer, weight: AffineWeight) -> None:
        super().__init__()
        self.stored_bias = _Bias(layer)
        quantizer = layer.input_quantizer
        self.quantizer = quantizer if isinstance(quantizer, DynamicQuantizer) else None
        granularity = weight.form.granularity
        # MatMulInteger takes neither zero points of weights, nor one scale a group, nor 4-bit codes
        self.integer = weight.zero_point is None and granularity != "group" and 4 < weight.form.bits <= 8
        self.block_size = weight.form.group_size
        self.axis = 1 if granularity == "channel" else 0
        self.register_buffer("factors", layer.input_factors)
        # (in, out): MatMul reads it as it is
        self.register_buffer(CODES, _masked_codes(weight).T.contiguous())
        self.register_buffer("scale", _transposed(_scales(weight.scale, granularity)))
        zero = weight.zero_point
        if zero is None and layer.input_scale is not None:
            # ONNX Runtime fuses no Gemm or MatMul without one.
            zero = torch.zeros_like(weight.scale, dtype=torch.int8)
        zero = None if zero is None else _transposed(_scales(zero, granularity))
        self.register_buffer("zero_point", zero)

    @property
    def weight(self) -> Tensor:
        """(out, in), for modules that read it themselves."""
        weight = self._dequantized().T
        return weight if self.factors is None else weight * self.factors

    @property
    def bias(self) -> Tensor | None:
        """As it is added, for the same."""
        bias: Tensor | None = self.stored_bias()
        return bias

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if self.factors is not None:
            x = x * self.factors
        product: Tensor
        if self.quantizer is not None and self.integer:
            by_token = self.quantizer.granularity == "token"
            product = onnx_ops.dynamic_matmul(x, self.codes, self.scale, by_token)
            return product if bias is None else product + bias
        if self.quantizer is not None:
            x = _ExportDynamicQuantizer(self.quantizer)(x)
        weight = self._dequantized()
        if x.dim() == 2 and bias is not None and self.stored_bias.rounded:
            return torch.addmm(bias, x, weight)  # Gemm, the one form whose bias joins the integer sums
        product = x @ weight
        return product if bias is None else product + bias

    def _dequantized(self) -> Tensor:
        weight: Tensor = onnx_ops.dequantize(
            self.codes, self.scale, self.zero_point, self.axis, self.block_size
        )
        return weight


@final
class _ExportConvolution(nn.Module):
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, layer: EncodedLayer, weight: AffineWeight) -> None:
        super().__init__()
        self.layer = layer.layer
        self.shape = weight.shape
        self.input_grid = (
            layer.input_quantizer if isinstance(layer.input_quantizer, ChannelQuantizer) else None
        )
        self.stored_bias = _Bias(layer)
        self.by_group = weight.form.granularity == "group"
        self.block_size = weight.form.group_size
        codes = _masked_codes(weight)
        self.register_buffer(CODES, codes if self.by_group else codes.reshape(weight.shape))
        self.register_buffer("scale", _scales(weight.scale, weight.form.granularity))
        zero = None if weight.zero_point is None else _scales(weight.zero_point, weight.form.granularity)
        self.register_buffer("zero_point", zero)

    @property
    def weight(self) -> Tensor:
        """(out, in, ...)."""
        axis = 1 if self.by_group else 0
        weight: Tensor = onnx_ops.dequantize(self.codes, self.scale, self.zero_point, axis, self.block_size)
        return weight.reshape(self.shape) if self.by_group else weight

    @property
    def bias(self) -> Tensor | None:
        """As it is added."""
        bias: Tensor | None = self.stored_bias()
        return bias

    def forward(self, x: Tensor) -> Tensor:
        if self.input_grid is not None:
            padded = nn.functional.pad(x, self.input_grid.padding)
            x = onnx_ops.channel_codes(padded, self.input_grid.scale, self.input_grid.zero_point)
        return compute(self.layer, x, self.weight, self.bias)


@final
class _ExportEmbedding(nn.Module):
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, weight: AffineWeight) -> None:
        super().__init__()
        by_group = weight.form.granularity == "group"
        self.whole_table = by_group or weight.form.bits <= 4  # Gather takes no 4-bit integers
        self.axis = 1 if by_group else 0
        self.block_size = weight.form.group_size
        self.register_buffer(CODES, _masked_codes(weight))
        scale = _scales(weight.scale, weight.form.granularity)
        in_half = scale.dim() == 1 and not self.whole_table and fits_half(scale)
        self.register_buffer("scale", scale.half() if in_half else scale)
        zero = None if weight.zero_point is None else _scales(weight.zero_point, weight.form.granularity)
        self.register_buffer("zero_point", zero)

    @property
    def weight(self) -> Tensor:
        """(entries, width), for modules that read it themselves."""
        scale = self.scale.float()
        table: Tensor = onnx_ops.dequantize(self.codes, scale, self.zero_point, self.axis, self.block_size)
        return table

    def forward(self, ids: Tensor) -> Tensor:
        if self.whole_table:
            return nn.functional.embedding(ids, self.weight)
        rows: Tensor = onnx_ops.embed(self.codes, self.scale, self.zero_point, ids)
        return rows
