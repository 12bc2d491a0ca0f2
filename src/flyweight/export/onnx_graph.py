"""Clean-up of an exported graph: what no device needs is taken out, what no runtime can fuse is rewritten."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from flyweight.export.onnx_pools import pad_before_pools
from flyweight.export.onnx_sharing import share_initializers

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET_OF_2_BITS, IR_OF_2_BITS = 25, 13
SPATIAL_AXES = {2, 3}  # of four
_MOVES = frozenset({"Slice", "Pad", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool"})


def store_narrow_codes(model: ir.Model, narrow: Mapping[str, str]) -> None:
    """Store several codes in a byte, in place; a file with codes of 2 bits is of the first version with them.

    Args:
        model: As it was translated: an optimizer would take out what makes 8 bits of codes of 8 bits.
        narrow: Initializer to its integer type.
    """
    import ml_dtypes
    import onnx_ir as ir

    for name, kind in narrow.items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue
        array = value.const_value.numpy().astype(getattr(ml_dtypes, kind.lower()))
        value.const_value = ir.tensor(array, dtype=ir.DataType[kind], name=name)
        value.dtype = ir.DataType[kind]
        if kind.endswith("2"):
            model.opset_imports[""], model.ir_version = OPSET_OF_2_BITS, IR_OF_2_BITS


def clean(model: ir.Model, weights: Mapping[str, str]) -> None:
    """All passes below, in place; ``weights``: initializers of codes to their names in the file."""
    from onnx_ir.passes import common

    _pool_instead_of_mean(model.graph)
    pad_before_pools(model.graph)
    share_initializers(model.graph)
    _move_codes(model.graph)
    common.RemoveUnusedNodesPass()(model)
    _join_slices(model.graph)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ClearMetadataAndDocStringPass()(model)  # the tracer's stack traces outweigh a small model
    _drop_default_attributes(model)
    _shorten_names(model.graph, weights)
    model.producer_name, model.producer_version = "flyweight", None
    model.graph.name = "g"


def _pool_instead_of_mean(graph: ir.Graph) -> None:
    """A mean over height and width becomes a global average pool, which has an integer kernel."""
    import onnx_ir as ir

    for node in list(graph):
        axes = _constant(node, 1) if node.op_type == "ReduceMean" else None
        if axes is None or {axis % 4 for axis in axes} != SPATIAL_AXES:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or len(source.shape) != 4:
            continue
        pool = ir.node("GlobalAveragePool", [source])
        added = [pool]
        if node.attributes.get_int("keepdims", 1) == 0:
            around = _quantizers_after(result)
            tail = pool.outputs[0]
            if around is not None:  # the pool runs on integers only if its own output is rounded
                quantize, dequantize = around
                first = ir.node("QuantizeLinear", [tail, *quantize.inputs[1:]])
                second = ir.node("DequantizeLinear", [first.outputs[0], *dequantize.inputs[1:]])
                added += [first, second]
                tail = second.outputs[0]
            added.append(ir.node("Flatten", [tail], attributes={"axis": 1}))
        added[-1].outputs[0].shape, added[-1].outputs[0].dtype = result.shape, result.dtype
        graph.insert_before(node, added)
        ir.convenience.replace_all_uses_with(result, added[-1].outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _move_codes(graph: ir.Graph) -> None:
    """What only moves values moves codes: dequantize, move, quantize of one scale become the move alone."""
    import onnx_ir as ir

    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type in _MOVES and node.inputs[0] is not None else None
        after = _quantizers_after(node.outputs[0]) if before is not None else None
        if before is None or after is None or before.op_type != "DequantizeLinear":
            continue
        codes, scale, zero_point = before.inputs
        if (scale, zero_point) != tuple(after[0].inputs[1:]):
            continue
        node.replace_input_with(0, codes)
        if node.op_type == "Pad":  # the code of 0 fills what the value 0 filled
            node.resize_inputs(max(len(node.inputs), 3))
            node.replace_input_with(2, zero_point)
        node.outputs[0].dtype = ir.DataType.UINT8
        ir.convenience.replace_all_uses_with(after[0].outputs[0], node.outputs[0])
        graph.remove(after[0], safe=True)


def _join_slices(graph: ir.Graph) -> None:
    """A slice of a slice along other axes is one slice, ``x[:, :, ::2][:, :, :, ::2]``: one pass, not two."""
    import onnx_ir as ir

    for node in list(graph):
        before = node.inputs[0].producer() if node.op_type == "Slice" and node.inputs[0] is not None else None
        if before is None or before.op_type != "Slice" or len(list(before.outputs[0].uses())) != 1:
            continue
        first, second = _slice_constants(before), _slice_constants(node)
        if first is None or second is None or set(first[2].tolist()) & set(second[2].tolist()):
            continue
        node.replace_input_with(0, before.inputs[0])
        for index, (a, b) in enumerate(zip(first, second, strict=True), 1):
            joined = ir.tensor(np.concatenate([a, b]), name=f"{node.outputs[0].name}_slice_{index}")
            value = ir.Value(
                name=joined.name, const_value=joined, shape=joined.shape, type=ir.TensorType(joined.dtype)
            )
            graph.register_initializer(value)
            node.replace_input_with(index, value)
        graph.remove(before, safe=True)


def _slice_constants(node: ir.Node) -> tuple[np.ndarray, ...] | None:
    """(starts, ends, axes, steps) of a Slice, or None where one is computed or left out."""
    if len(node.inputs) != 5:
        return None
    constants = [value.const_value for value in node.inputs[1:] if value is not None]
    found = [c.numpy().astype(np.int64).reshape(-1) for c in constants if c is not None]
    return tuple(found) if len(found) == 4 else None


def _quantizers_after(value: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    users = [use.node for use in value.uses()]
    if len(users) != 1 or users[0].op_type != "QuantizeLinear":
        return None
    after = [use.node for use in users[0].outputs[0].uses()]
    return (users[0], after[0]) if after and after[0].op_type == "DequantizeLinear" else None


def _constant(node: ir.Node, index: int) -> tuple[int, ...] | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or value.const_value is None:
        return None
    return tuple(int(i) for i in value.const_value.numpy().reshape(-1))


def _drop_default_attributes(model: ir.Model) -> None:
    """Attributes that say what the operator's definition says already."""
    import onnx

    for node in model.graph:
        if node.domain not in {"", "ai.onnx"}:
            continue
        for name in ("strides", "dilations"):  # their default is 1 on every axis, which a schema cannot say
            if name in node.attributes and set(node.attributes.get_ints(name, ())) == {1}:
                del node.attributes[name]
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports[""], "")
        for name, attribute in list(node.attributes.items()):
            default = schema.attributes[name].default_value
            if default.type != onnx.AttributeProto.UNDEFINED and onnx.helper.get_attribute_value(
                default
            ) == _plain(attribute.value):
                del node.attributes[name]


def _plain(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


def _shorten_names(graph: ir.Graph, weights: Mapping[str, str]) -> None:
    """Every name is stored at each use; only inputs, outputs and stored weights keep theirs."""
    kept = {value.name for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]}
    names = (name for name in _short_names() if name not in kept)
    for node in graph:
        node.name = None
        for output in node.outputs:
            if output.name and not output.is_graph_output():
                output.name = next(names)
    for value in list(graph.initializers.values()):
        old = value.name or ""
        if old in weights:
            value.name = weights[old]
        elif not old.endswith("weight"):
            value.name = next(names)


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            yield "".join(letters)
