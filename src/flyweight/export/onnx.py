"""ONNX files that are small and fast by construction.

Affine weights become integer initializers; activations are rounded by QuantizeLinear/DequantizeLinear pairs
or by DynamicQuantizeLinear, in the patterns that runtimes fuse. Every other stored form is written decoded,
as float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from onnxscript import optimizer
from torch import nn
from torch._export.verifier import SpecViolationError

from flyweight import _atomic
from flyweight.core.layer import FLOAT_BITS, LayerProfile, ModelProfile
from flyweight.errors import UnsupportedError
from flyweight.export.onnx_graph import clean
from flyweight.export.onnx_layers import CODES, check_activation_bits, to_export_form
from flyweight.export.onnx_ops import OPSET, translations
from flyweight.measure.graph import TRACING_FAILURES, check_axes, doubled, dynamic_shapes, quiet_tracer
from flyweight.model import Model, copied
from flyweight.tensors.affine import SCALE_BITS, AffineWeight
from flyweight.tensors.cache import cache_bytes
from flyweight.tensors.encoded import encoded_layers

# Measured on the networks of `flyweight.testing.strategies`: a layer's nodes with their inputs' names, and
# the headers of its initializers.
BYTES_OF_A_GRAPH = 300
BYTES_A_FLOAT_LAYER = 100
BYTES_OF_ROUNDING = {"float": 0, "dynamic": 60, "static": 175}  # of what a float layer reads
BYTES_AN_INTEGER_LAYER = {"float": 155, "dynamic": 200, "static": 330}
BYTES_OF_A_RESHAPE = 110  # of a convolution's weight, where neighbouring columns share a scale
HALF_SCALE_BITS = 16
MAX_STORED_BYTES = 2_000_000_000  # a message of protobuf ends at 2**31; the rest is for the graph
# What tracing, translating and cleaning up raise on modules and graphs that they do not understand.
EXPORT_FAILURES = (*TRACING_FAILURES, ArithmeticError, SpecViolationError)


@final
class OnnxExporter:
    """Writes ``model.onnx``."""

    format = "onnx"
    model_file = "model.onnx"

    def lower(self, profile: ModelProfile) -> ModelProfile:
        """Dense codes of 4 or 8 bits, float32 scales; the format keeps neither sparsity nor other widths.

        A weight that two layers share is stored once only if both store it in the same form.

        Raises:
            UnsupportedError: A layer reads activations of fewer than 8 bits.
        """
        for layer in profile.layers:
            check_activation_bits(layer.name, layer.activation_bits)
        layers = tuple(
            _lowered(layer if _shared(layer, profile) else replace(layer, tied_to=None))
            for layer in profile.layers
        )
        container = BYTES_OF_A_GRAPH + sum(map(_container_bytes, layers))
        return replace(profile, layers=layers, container_bytes=float(container))

    def export(self, model: Model, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            UnsupportedError: The model cannot be traced, uses an operator without ONNX counterpart, or
                exceeds 2 GB.
        """
        if cache_bytes(model.module) is not None:
            raise UnsupportedError(
                f"model {model.name!r} rounds the keys and values that a cache holds, and ONNX files compute "
                "whole sequences and hold no cache between calls: leave kv_cache out, or measure the plan "
                "with flyweight evaluate"
            )
        try:
            data = _file(model)
        except EXPORT_FAILURES as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UnsupportedError(
                f"model {model.name!r} cannot be exported to ONNX: {reason.strip()}"
            ) from error
        _atomic.write_bytes(path, data)


def _shared(layer: LayerProfile, profile: ModelProfile) -> bool:
    owner = profile.by_name.get(layer.tied_to or "")
    stored = ("code_bits", "group_size", "weight_bits", "density")
    return owner is not None and all(getattr(layer, part) == getattr(owner, part) for part in stored)


def _lowered(layer: LayerProfile) -> LayerProfile:
    if layer.code_bits is None:
        return replace(layer, weight_bits=float(FLOAT_BITS), density=1.0)
    width = 4 if layer.code_bits <= 4 else 8
    scales = 1 if layer.group_size is None else layer.rows * -(-layer.columns // layer.group_size)
    by_row = layer.group_size == layer.columns
    halved = layer.op == "embedding" and by_row and width == 8
    bits = scales * (HALF_SCALE_BITS if halved else SCALE_BITS)
    if _has_zero_points(layer, scales):
        bits += scales * width
    return replace(layer, weight_bits=width + bits / layer.weights, density=1.0, code_bits=width)


def _has_zero_points(layer: LayerProfile, scales: int) -> bool:
    """Whether more is stored than codes, scales and, of a layer with removed weights, their mask."""
    kept = layer.weights * layer.density
    mask = layer.weights if layer.density < 1 else 0
    rest = layer.weight_bits * kept - kept * (layer.code_bits or 0) - scales * SCALE_BITS - mask
    return rest > scales  # a zero point has at least two bits


def _static_bytes(layer: LayerProfile) -> float:
    """Of zero points where a matrix is multiplied, and of scales where the bias is of integers."""
    scales = 1 if layer.group_size is None else layer.rows * -(-layer.columns // layer.group_size)
    if layer.activation_mode != "static" or _has_zero_points(layer, scales):
        return 0.0
    is_linear = layer.op == "linear"
    by_group = layer.group_size is not None and layer.group_size < layer.columns
    integer_bias = not by_group and (not is_linear or layer.input_elements == layer.columns)
    return scales * (is_linear * (layer.code_bits or 0) + integer_bias * SCALE_BITS) / 8


def _container_bytes(layer: LayerProfile) -> float:
    if layer.code_bits is None:
        return float(BYTES_A_FLOAT_LAYER + BYTES_OF_ROUNDING[layer.activation_mode])
    by_group = layer.group_size is not None and layer.group_size < layer.columns
    reshaped = by_group and layer.op in {"conv1d", "conv2d"}
    graph = BYTES_AN_INTEGER_LAYER[layer.activation_mode] + reshaped * BYTES_OF_A_RESHAPE
    return graph + _static_bytes(layer)


def _export_form(module: nn.Module) -> nn.Module:
    form = copied(module)
    to_export_form(form)
    return form


def _file(model: Model) -> bytes:
    import onnx_ir as ir

    code_bits = {
        f"{name}.{CODES}": layer.encoding().form.bits  # type: ignore[attr-defined]
        for name, layer in encoded_layers(model.module)
        if isinstance(layer.encoding(), AffineWeight)
    }
    proto = _traced(model, _export_form(model.module))
    clean(proto, code_bits)
    _name_ports(proto.graph, model)
    stored = sum(v.const_value.nbytes for v in proto.graph.initializers.values() if v.const_value is not None)
    if stored > MAX_STORED_BYTES:
        raise UnsupportedError(
            f"the weights of model {model.name!r} take {stored} bytes; one ONNX file holds 2 GB: "
            "choose fewer bits"
        )
    file = ir.to_proto(proto)
    # Runtimes infer shapes; stored, they were a tenth of a small file.
    file.graph.ClearField("value_info")
    data: bytes = file.SerializeToString()
    return data


def _traced(model: Model, module: nn.Module) -> Any:
    inputs = doubled(model.example_inputs)
    with quiet_tracer(), torch.no_grad():
        program = torch.export.export(module, (), inputs, dynamic_shapes=dynamic_shapes(model), strict=False)
        check_axes(program, model)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=dict(translations()),
            verbose=False,
            optimize=False,
        )
    if exported is None:
        raise RuntimeError("the exporter returned nothing")
    optimizer.optimize_ir(exported.model, should_fold=_may_fold)
    return exported.model


def _may_fold(node: Any) -> bool | None:
    """Not what reads codes: rows of a table looked up at fixed positions would be stored as floats."""
    reads_codes = any(
        value is not None and value.is_initializer() and str(value.name).endswith(f".{CODES}")
        for value in node.inputs
    )
    return False if reads_codes else None


def _name_ports(graph: Any, model: Model) -> None:
    """Inputs and dynamic axes keep the model's names, outputs are ``output``, ``output_1``...

    Where an input is called like that, they are ``model_output``, ``model_output_1``...
    """
    import onnx_ir as ir

    prefix = "output"
    while any(name.startswith(prefix) for name in model.dynamic_axes):
        prefix = f"model_{prefix}"
    for index, value in enumerate(graph.outputs):
        value.name = prefix if index == 0 else f"{prefix}_{index}"
        first = value.shape[0] if value.shape is not None and len(value.shape) else None
        if first is not None and not isinstance(first, int):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    for value in graph.inputs:
        if value.name not in model.dynamic_axes:  # the tracer renames an input that is also an output
            value.name = value.name.removesuffix("_orig")
        axes = model.dynamic_axes[value.name]
        value.shape = ir.Shape([axes.get(i, size) for i, size in enumerate(value.shape)])
