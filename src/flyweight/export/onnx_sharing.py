"""One initializer for what would be stored twice: equal tensors, transposed ones, and float16 widened.

An embedding and an output layer that share a weight read the same codes, one as they are and one transposed.
The transposition is a node on a constant, which runtimes carry out once, as they load the file.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

LEAST_BYTES = 256  # below, a node costs more than it saves

_Key = tuple[str, tuple[int, ...], bytes]


def share_initializers(graph: ir.Graph) -> None:
    """Keep each tensor once, in place."""
    kept: dict[_Key, ir.Value] = {}
    for value in sorted(graph.initializers.values(), key=_is_computed_with):
        if value.const_value is None or value.is_graph_input() or value.is_graph_output():
            continue
        array = value.const_value.numpy()
        same = kept.get(_key(array)) or (_derived(graph, kept, array) if array.nbytes > LEAST_BYTES else None)
        if same is None:
            kept[_key(array)] = value
            continue
        value.replace_all_uses_with(same)
        graph.initializers.pop(value.name or "")


def _is_computed_with(value: ir.Value) -> bool:
    """Tables that are only looked up come first: they stay as they are, and the others are derived."""
    return not any(use.node.op_type == "Gather" for use in value.uses())


def _key(array: np.ndarray) -> _Key:
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _derived(graph: ir.Graph, kept: dict[_Key, ir.Value], array: np.ndarray) -> ir.Value | None:
    """The value computed from a kept one, or None."""
    import onnx_ir as ir

    if array.ndim == 2 and (source := kept.get(_key(array.T))) is not None:
        node = ir.node("Transpose", [source], attributes={"perm": [1, 0]})
    elif (half := _as_half(array)) is not None and (source := kept.get(_key(half))) is not None:
        node = ir.node("Cast", [source], attributes={"to": ir.DataType.FLOAT})
    else:
        return None
    result = node.outputs[0]
    result.shape = ir.Shape(array.shape)
    result.dtype = source.dtype if node.op_type == "Transpose" else ir.DataType.FLOAT
    graph.insert_before(next(iter(graph)), node)
    kept[_key(array)] = result
    return result


def _as_half(array: np.ndarray) -> np.ndarray | None:
    """The same values in float16, where it holds them all."""
    if array.dtype != np.float32 or np.abs(array).max() > np.finfo(np.float16).max:
        return None
    half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None
