"""How each operator of a graph hands on the numbers of channels; see `flyweight.channels.trace`."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from flyweight.channels.classes import ANY, FIXED, Classes, once
from flyweight.channels.moves import MOVES, PADS, SAME, SIZES, is_float, moved, operation, pads_with_zeros
from flyweight.errors import UnsupportedError
from flyweight.measure.graph import ATEN, module_of
from flyweight.tensors.encoded import EncodedLayer, has_own_code

Scaled = nn.Linear | nn.Conv1d | nn.Conv2d
_SPATIAL_AXES: Mapping[type[nn.Module], int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2}

_HOMOGENEOUS: frozenset[Any] = SAME | {
    ATEN.relu,
    ATEN.relu_,
    ATEN.leaky_relu,
    ATEN.leaky_relu_,
    ATEN.abs,
    ATEN.neg,
}
_REDUCTIONS: frozenset[Any] = frozenset({ATEN.mean, ATEN.sum, ATEN.amax, ATEN.amin})
_CLAMPS: frozenset[Any] = frozenset({ATEN.hardtanh, ATEN.hardtanh_})
# operator -> how many axes at the end it computes over
_POOLS: Mapping[Any, int] = {
    ATEN.max_pool1d: 1,
    ATEN.avg_pool1d: 1,
    ATEN.adaptive_avg_pool1d: 1,
    ATEN.max_pool2d: 2,
    ATEN.avg_pool2d: 2,
    ATEN.adaptive_avg_pool2d: 2,
    ATEN.upsample_nearest1d: 1,
    ATEN.upsample_nearest2d: 2,
    ATEN.upsample_bilinear2d: 2,
}
# operator -> axis of its weight's channels in the result, positions of weight and bias
_NORMS: Mapping[Any, tuple[int, int, int | None]] = {
    ATEN.layer_norm: (-1, 2, 3),
    ATEN.rms_norm: (-1, 2, None),
    ATEN.group_norm: (1, 2, 3),
}


def layer_of(module: nn.Module | None) -> Scaled | None:
    """The linear layer or convolution a module computes with, if its weight may change."""
    if isinstance(module, EncodedLayer):
        changed = module.frozen is not None or module.input_quantizer is not None
        return None if changed or not isinstance(module.layer, Scaled) else module.layer
    return module if isinstance(module, Scaled) and not has_own_code(module) else None


def scaled_layer(root: nn.Module, name: str) -> Scaled:
    """`layer_of` the module at ``name``.

    Raises:
        UnsupportedError: There is none.
    """
    layer = layer_of(root.get_submodule(name))
    if layer is None:
        raise UnsupportedError(
            f"layer {name!r} is no linear layer or convolution with a weight of its own: leave it out"
        )
    return layer


@final
class Tracer(fx.Interpreter):
    """Runs the graph once, and with each value its numbers: int64 of the value's shape."""

    def __init__(self, graph: fx.GraphModule, layers: Collection[str], *, sums: bool, clamps: bool) -> None:
        super().__init__(graph)
        owners = Counter(id(p) for _, p in graph.named_parameters(remove_duplicate=False))
        self._shared = {key for key, count in owners.items() if count > 1}
        self._layers = set(layers)
        self._sums, self._clamps = sums, clamps
        self._rules = self._table()
        self.classes = Classes()
        self._numbers: dict[fx.Node, Any] = {}
        self.rows: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        self.reads: dict[str, list[fx.Node]] = {}
        self.clamped: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._numbers[n] = self._follow(n, result)
        return result

    def _follow(self, node: fx.Node, result: Any) -> Any:
        if node.op == "get_attr":
            return self._parameter(node, result)
        if node.op == "call_module":
            return self._layer(node, result)
        if node.op == "call_function":
            return self._rules.get(operation(node), self._unknown)(node, result)
        return self._unknown(node, result)

    def _table(self) -> Mapping[Any, Callable[[fx.Node, Any], Any]]:
        return {
            **dict.fromkeys(_HOMOGENEOUS, self._same),
            **dict.fromkeys(MOVES, self._moved),
            **dict.fromkeys(PADS, self._padded),
            **dict.fromkeys(_POOLS, self._pooled),
            **dict.fromkeys(_REDUCTIONS, self._reduced),
            **dict.fromkeys(_NORMS, self._norm),
            **dict.fromkeys(_CLAMPS, self._clamp),
            **dict.fromkeys((ATEN.add, ATEN.add_, ATEN.sub), self._sum),
            **dict.fromkeys((ATEN.matmul, ATEN.bmm), self._matmul),
            **dict.fromkeys((ATEN.masked_fill, ATEN.where), self._chosen),
            **dict.fromkeys(SIZES, self._nothing),
            ATEN.mul: self._product,
            ATEN.div: self._quotient,
            ATEN.scaled_dot_product_attention: self._attention,
            operator.getitem: self._item,
        }

    def _of(self, value: object) -> Any:
        """The numbers of an argument; None where it is no float tensor."""
        return self._numbers.get(value) if isinstance(value, fx.Node) else None

    def _fix(self, numbers: Any) -> None:
        for leaf in tree_leaves(numbers):
            if isinstance(leaf, Tensor):
                self.classes.fix(leaf)

    def _unknown(self, node: fx.Node, result: Any) -> Any:
        for source in node.all_input_nodes:
            self._fix(self._numbers[source])
        return _all_fixed(result)

    def _nothing(self, node: fx.Node, result: Any) -> Any:
        return _all_fixed(result)

    def _parameter(self, node: fx.Node, result: Any) -> Any:
        """Numbers of a parameter's channels: its only axis longer than 1, or its last."""
        if not isinstance(result, nn.Parameter) or not is_float(result) or id(result) in self._shared:
            return _all_fixed(result)
        axis = channel_axis(result)
        if axis is None:
            return _all_fixed(result)
        name = str(node.target)
        if name not in self.parameters:
            self.parameters[name] = self.classes.fresh(result.shape[axis])
        return _along(self.parameters[name], axis, result.shape)

    def _layer(self, node: fx.Node, result: Any) -> Any:
        name = str(node.target)
        layer = layer_of(module_of(self.module, node))  # type: ignore[arg-type]  # it is the graph
        read = self._of(node.args[0]) if node.args else None
        if layer is None or read is None or name not in self._layers or self._is_shared(layer):
            return self._unknown(node, result)
        axis = -1 - _SPATIAL_AXES[type(layer)]
        others = [a for a in range(read.dim()) if a != read.dim() + axis]
        columns = self.classes.same_along(read, others).reshape(-1).expand(read.shape[axis])
        self.columns[name] = self.classes.join(columns, self.columns.get(name, columns))
        self.reads.setdefault(name, []).append(node.args[0])  # type: ignore[arg-type]  # it has numbers
        if name not in self.rows:
            self.rows[name] = self.classes.fresh(layer.weight.shape[0])
        return _along(self.rows[name], axis, result.shape)

    def _is_shared(self, layer: Scaled) -> bool:
        return any(id(p) in self._shared for p in layer.parameters())

    def _same(self, node: fx.Node, result: Any) -> Any:
        numbers = self._of(node.args[0])
        return numbers if is_float(result) and numbers is not None else self._unknown(node, result)

    def _moved(self, node: fx.Node, result: Any) -> Any:
        if not all(is_float(leaf) for leaf in tree_leaves(result)):
            return self._unknown(node, result)
        return moved(node, self._numbers_or_value)

    def _padded(self, node: fx.Node, result: Any) -> Any:
        if not pads_with_zeros(node):
            return self._unknown(node, result)
        inside = moved(
            node, lambda n: torch.ones_like(self._numbers[n]) if n is node.args[0] else self.env[n]
        )
        return torch.where(inside == 1, moved(node, self._numbers_or_value), ANY)

    def _numbers_or_value(self, node: fx.Node) -> Any:
        numbers = self._numbers[node]
        return self.env[node] if numbers is None else numbers

    def _item(self, node: fx.Node, result: Any) -> Any:
        several, index = self._of(node.args[0]), node.args[1]
        if isinstance(several, tuple | list) and isinstance(index, int):
            return several[index]
        return self._unknown(node, result)

    def _pooled(self, node: fx.Node, result: Any) -> Any:
        numbers = self._of(node.args[0])
        if numbers is None or not is_float(result):
            return self._unknown(node, result)
        axes = [numbers.dim() - 1 - i for i in range(_POOLS[operation(node)])]
        return self.classes.same_along(numbers, axes).expand(result.shape)

    def _reduced(self, node: fx.Node, result: Any) -> Any:
        numbers = self._of(node.args[0])
        if numbers is None or not is_float(result):
            return self._unknown(node, result)
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        several = given if isinstance(given, list | tuple) else [given] if isinstance(given, int) else []
        axes = [int(a) % numbers.dim() for a in several] or list(range(numbers.dim()))
        kept = self.classes.same_along(numbers, axes)
        if kept.dim() != result.dim():
            kept = kept.squeeze(tuple(axes))
        return kept.expand(result.shape)

    def _norm(self, node: fx.Node, result: Any) -> Any:
        """What is normalised stays; weight and bias are scaled together."""
        axis, weight_at, bias_at = _NORMS[operation(node)]
        positions = (weight_at,) if bias_at is None else (weight_at, bias_at)
        affine = [self._of(node.args[at]) for at in positions if at < len(node.args)]
        known = [numbers for numbers in affine if numbers is not None]
        one_axis = axis == 1 or len(node.args[1]) == 1  # type: ignore[arg-type]  # the normalised shape
        if not known or affine[0] is None or not one_axis:
            return self._unknown(node, result)
        self._fix(self._of(node.args[0]))
        numbers = known[0]
        for other in known[1:]:
            numbers = self.classes.join(numbers, other)
        return _along(numbers, axis - result.dim() if axis > 0 else axis, result.shape)

    def _sum(self, node: fx.Node, result: Any) -> Any:
        operands = node.args[:2]
        numbers = [self._of(operand) for operand in operands]
        if any(n is None for n in numbers):
            return self._unknown(node, result)
        parameter = any(isinstance(o, fx.Node) and o.op == "get_attr" for o in operands)
        if not self._sums and not parameter:
            return self._unknown(node, result)
        return self.classes.join(*numbers).expand(result.shape)

    def _product(self, node: fx.Node, result: Any) -> Any:
        one, other = (self._of(operand) for operand in node.args[:2])
        if one is None or other is None:
            kept = other if one is None else one
            return (
                kept.expand(result.shape)
                if is_float(result) and kept is not None
                else self._unknown(node, result)
            )
        if node.args[0] is node.args[1]:
            return self._unknown(node, result)
        first = self.classes.free(one) and not (
            self.classes.free(other) and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr"
        )
        kept, fixed = (one, other) if first else (other, one)
        self.classes.fix(fixed)
        return kept.expand(result.shape)

    def _quotient(self, node: fx.Node, result: Any) -> Any:
        one, other = (self._of(operand) for operand in node.args[:2])
        if one is None or not is_float(result) or "rounding_mode" in node.kwargs:
            return self._unknown(node, result)
        self._fix(other)
        return one.expand(result.shape)

    def _matmul(self, node: fx.Node, result: Any) -> Any:
        left, right = (self._of(operand) for operand in node.args[:2])
        if left is None or right is None or left.dim() < 2 or right.dim() < 2 or self.classes.free(left):
            return self._unknown(node, result)
        return self.classes.same_along(right, [right.dim() - 2]).expand(result.shape)

    def _attention(self, node: fx.Node, result: Any) -> Any:
        for source in node.all_input_nodes:
            if source is not node.args[2]:
                self._fix(self._numbers[source])
        values = self.classes.same_along(self._of(node.args[2]), [result.dim() - 2])
        repeats = result.shape[-3] // values.shape[-3] if values.dim() > 2 else 1
        return (values.repeat_interleave(repeats, -3) if repeats > 1 else values).expand(result.shape)

    def _clamp(self, node: fx.Node, result: Any) -> Any:
        numbers = self._of(node.args[0])
        from_zero = len(node.args) > 2 and not node.args[1]
        read_again = operation(node) is ATEN.hardtanh_ and len(node.all_input_nodes[0].users) > 1
        if not self._clamps or numbers is None or not from_zero or read_again:
            return self._unknown(node, result)
        bounds = once(numbers)
        if sum(size > 1 for size in bounds.shape) > 1:  # a bound for each channel is all that is kept
            return self._unknown(node, result)
        self.clamped[node] = bounds
        return numbers

    def _chosen(self, node: fx.Node, result: Any) -> Any:
        """``masked_fill`` and ``where``: the same values, or others in their place."""
        values = [a for a in node.args if not (isinstance(a, fx.Node) and self._of(a) is None)]
        numbers = [self._of(a) for a in values if isinstance(a, fx.Node)]
        if any(a for a in values if not isinstance(a, fx.Node)) or not numbers or not is_float(result):
            return self._unknown(node, result)
        kept = numbers[0]
        for other in numbers[1:]:
            kept = self.classes.join(kept, other)
        return kept.expand(result.shape)


def channel_axis(parameter: Tensor) -> int | None:
    """The axis of a parameter's channels: the only one longer than 1, or the last; None without axes."""
    long = [axis for axis, size in enumerate(parameter.shape) if size > 1]
    if parameter.dim() == 0:
        return None
    return (long[0] if len(long) == 1 else parameter.dim() - 1) - parameter.dim()


def _along(numbers: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """Numbers of channels, for values of a shape with the channels on an axis, counted from the end."""
    return numbers.reshape(-1, *(1,) * (-axis - 1)).expand(shape)


def _all_fixed(result: Any) -> Any:
    """`FIXED` in the shape of each float tensor, None for all else."""
    return tree_map(lambda t: torch.tensor(FIXED).expand(t.shape) if is_float(t) else None, result)
