"""ONNX files that are small and fast by construction.

Weights are stored as the codes they are; `flyweight.export.onnx_routes` says what kernels make of them.
Activations are rounded by QuantizeLinear/DequantizeLinear pairs or by DynamicQuantizeLinear, in the patterns
that runtimes fuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from onnxscript import optimizer
from torch import nn
from torch._export.verifier import SpecViolationError

from flyweight import _atomic
from flyweight.core.layer import ModelProfile
from flyweight.errors import UnsupportedError
from flyweight.export.onnx_block_ops import block_translations, lists_places
from flyweight.export.onnx_graph import clean, store_narrow_codes
from flyweight.export.onnx_inputs import check_activation_bits
from flyweight.export.onnx_layers import to_export_form
from flyweight.export.onnx_ops import OPSET, translations
from flyweight.export.onnx_products import layer_inputs
from flyweight.export.onnx_size import lowered
from flyweight.export.onnx_stored import CODES, StoresCodes
from flyweight.export.onnx_stored_ops import stored_translations
from flyweight.measure.graph import TRACING_FAILURES, check_axes, doubled, dynamic_shapes, quiet_tracer
from flyweight.model import Model, copied
from flyweight.tensors.cache import cache_bytes
from flyweight.tensors.encoded import encoded_layers

MAX_STORED_BYTES = 2_000_000_000  # a message of protobuf ends at 2**31; the rest is for the graph
# What tracing, translating and cleaning up raise on modules and graphs that they do not understand.
EXPORT_FAILURES = (*TRACING_FAILURES, ArithmeticError, SpecViolationError)


@final
class OnnxExporter:
    """Writes ``model.onnx``."""

    format = "onnx"
    model_file = "model.onnx"

    def lower(self, profile: ModelProfile) -> ModelProfile:
        """Dense codes of 2, 4, 8 or 16 bits; the format keeps neither sparsity nor other widths.

        A weight that two layers share is stored once only if both store it in the same form.

        Raises:
            UnsupportedError: A layer reads activations of fewer than 8 bits.
        """
        for layer in profile.layers:
            check_activation_bits(layer.name, layer.activation_bits)
        return lowered(profile)

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


def _export_form(model: Model) -> nn.Module:
    form = copied(model.module)
    to_export_form(form, layer_inputs(model))
    return form


def _stored(form: nn.Module) -> Iterator[tuple[str, StoresCodes]]:
    """Qualified name and module of each that holds codes."""
    for name, module in form.named_modules():
        if isinstance(module, StoresCodes):
            yield name, module


def _weight_names(stored: Mapping[str, StoresCodes], layers: Sequence[str]) -> dict[str, str]:
    """Initializers of codes to the names of the weights they stand for."""
    owners = {path: layer for path in stored for layer in layers if f"{path}.".startswith(f"{layer}.")}
    return {f"{path}.{CODES}": f"{layer}.weight" for path, layer in owners.items()}


def _file(model: Model) -> bytes:
    import onnx_ir as ir

    form = _export_form(model)
    proto = _traced(model, form)
    stored = dict(_stored(form))
    clean(proto, _weight_names(stored, [name for name, _ in encoded_layers(model.module)]))
    _name_ports(proto.graph, model)
    size = sum(v.const_value.nbytes for v in proto.graph.initializers.values() if v.const_value is not None)
    if size > MAX_STORED_BYTES:
        raise UnsupportedError(
            f"the weights of model {model.name!r} take {size} bytes; one ONNX file holds 2 GB: "
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
            custom_translation_table={**translations(), **stored_translations(), **block_translations()},
            verbose=False,
            optimize=False,
        )
    if exported is None:
        raise RuntimeError("the exporter returned nothing")
    stored = dict(_stored(module))
    narrow = {f"{path}.{part}": kind for path, m in stored.items() for part, kind in m.narrow_types.items()}
    store_narrow_codes(exported.model, narrow)
    kept = {f"{path}.{part}" for path, m in stored.items() for part, _ in m.named_buffers()}  # type: ignore[attr-defined]

    def may_fold(node: Any) -> bool | None:
        """Not what reads stored weights: what is computed from them would be stored, too, and wider."""
        reads = any(v is not None and v.is_initializer() and v.name in kept for v in node.inputs)
        return False if reads or lists_places(node) else None

    optimizer.optimize_ir(exported.model, should_fold=may_fold)
    return exported.model


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
