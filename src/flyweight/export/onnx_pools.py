"""Average pools that round their size up, in a form that integer kernels compute rightly.

A window may then reach beyond the padding. What lies there counts for nothing, but ONNX Runtime's integer
kernel divides by the whole window where the padding counts. Without padding there is nothing to count, so the
padding becomes a node of its own, on the codes: before the pool itself the runtime would take it back in.

Limits: a padded pool whose height or width is not fixed is left as it is where whole windows may lie in the
padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def pad_before_pools(graph: ir.Graph) -> None:
    """Take counted padding out of every average pool that rounds its size up, in place."""
    for node in list(graph):
        attributes = node.attributes
        rounds_up = node.op_type == "AveragePool" and attributes.get_int("ceil_mode", 0)
        if not rounds_up or not attributes.get_int("count_include_pad", 0):
            continue
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        padding = _padding(node)
        if source is None or source.op_type != "DequantizeLinear" or padding is None:
            continue  # floats are divided rightly
        if any(padding):
            _insert_padding(graph, node, source, padding)
        for name in ("count_include_pad", "pads"):
            attributes.pop(name, None)


def _padding(node: ir.Node) -> list[int] | None:
    """Zeros before each axis, then after each, that give the same windows; None where they are not known."""
    kernel = node.attributes.get_ints("kernel_shape", ())
    strides = node.attributes.get_ints("strides", [1] * len(kernel))
    pads = node.attributes.get_ints("pads", [0] * 2 * len(kernel))
    before, after = list(pads[: len(kernel)]), list(pads[len(kernel) :])
    read, written = node.inputs[0], node.outputs[0]
    for axis, (size, stride) in enumerate(zip(kernel, strides, strict=True)):
        if before[axis] + stride <= size:
            continue  # the last window starts before the padding ends it
        shapes = [None if v is None or v.shape is None else v.shape[axis + 2] for v in (read, written)]
        length, windows = shapes
        if not isinstance(length, int) or not isinstance(windows, int):
            return None if any(pads) else [0] * len(pads)
        # a window that would start in the padding does not exist: the one before it ends the padding
        after[axis] = min(after[axis], (windows - 1) * stride + size - length - before[axis])
    return before + after


def _insert_padding(graph: ir.Graph, node: ir.Node, source: ir.Node, padding: list[int]) -> None:
    """Pad what ``source`` dequantizes for the pool, with the code of 0."""
    import onnx_ir as ir

    axes = len(padding) // 2
    amounts = np.array([0, 0, *padding[:axes], 0, 0, *padding[axes:]], np.int64)
    tensor = ir.tensor(amounts, name=f"{node.outputs[0].name}_padding")
    value = ir.Value(
        name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    codes, scale, zero_point = source.inputs
    pad = ir.node("Pad", [codes, value, zero_point])
    dequantize = ir.node("DequantizeLinear", [pad.outputs[0], scale, zero_point])
    graph.insert_before(node, [pad, dequantize])
    node.replace_input_with(0, dequantize.outputs[0])
