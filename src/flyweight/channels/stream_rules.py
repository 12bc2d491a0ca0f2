"""Which operators let a rotation of the channels through; see `flyweight.channels.streams`.

Every layer starts a stream of its own, with what it writes; sums make one stream of two. What is not linear
over the channels, and no norm, is an obstacle, which is kept with the operator's name.

Limits: a norm whose output is added to a stream again (as in BERT) ends it, as its weights would have to be
rotated between the two.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from flyweight.channels.moves import MOVES, SAME, SIZES, is_float, moved, operation
from flyweight.channels.streams import PLAIN, Affine, Kind, Stream, Streams, Value
from flyweight.measure.graph import ATEN, module_of
from flyweight.tensors.encoded import EncodedLayer, obstacle

_SPATIAL_AXES: Mapping[type[nn.Module], int] = {nn.Linear: 0, nn.Embedding: 0, nn.Conv1d: 1, nn.Conv2d: 2}

Found = Value | tuple[Value | None, ...] | None


@final
class StreamTracer(fx.Interpreter):
    """Runs the graph once and keeps, beside each value, where it lies in a stream."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._rules = self._table()
        self._values: dict[fx.Node, Found] = {}
        self.streams = Streams()
        self._normed: dict[str, set[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._values[n] = self._follow(n, result)
        return result

    def found(self) -> list[Stream]:
        """The streams, once the graph was run."""
        self._check_norms()
        self.streams.check_calls()
        return self.streams.found()

    def _follow(self, node: fx.Node, result: Any) -> Found:
        if node.op == "get_attr":
            return self._parameter(node, result)
        if node.op == "call_module":
            return self._layer(node, result)
        if node.op == "output":
            return self._output(node)
        if node.op == "call_function":
            return self._rules.get(operation(node), self._unknown)(node, result)
        return None

    def _table(self) -> Mapping[Any, Callable[[fx.Node, Any], Found]]:
        return {
            **dict.fromkeys(SAME, self._same),
            **dict.fromkeys(MOVES, self._moved),
            **dict.fromkeys(SIZES, self._nothing),
            **dict.fromkeys((ATEN.add, ATEN.add_, ATEN.sub), self._sum),
            **dict.fromkeys((ATEN.mean, ATEN.sum), self._reduced),
            **dict.fromkeys((ATEN.matmul, ATEN.bmm), self._matmul),
            **dict.fromkeys((ATEN.pow, ATEN.square), self._square),
            **dict.fromkeys((ATEN.layer_norm, ATEN.rms_norm), self._norm),
            **dict.fromkeys((ATEN.linalg_vector_norm, ATEN.norm), self._length),
            ATEN.mul: self._product,
            ATEN.div: self._quotient,
            ATEN.var: self._variance,
            ATEN.masked_fill: self._masked,
            operator.getitem: self._item,
        }

    def _nothing(self, node: fx.Node, result: Any) -> Value | None:
        return None

    # what is known of arguments

    def _seen(self, argument: object) -> Any:
        """What the graph computed for an argument."""
        return self.env[argument] if isinstance(argument, fx.Node) else argument

    def _of(self, argument: object) -> Value | None:
        found = self._values.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, Value) else None

    def _join(self, node: fx.Node, one: Value, other: Value) -> None:
        if not self.streams.join(one, other):
            self._obstruct(node, one, other)

    def _obstruct(self, node: fx.Node, *values: Value | None, why: str = "") -> None:
        for value in values:
            if value is not None:
                self.streams.of(value).obstacles.append(why or _place(node))

    def _unknown(self, node: fx.Node, result: Any) -> Value | None:
        for source in node.all_input_nodes:
            for value in tree_leaves(self._values.get(source)):
                if isinstance(value, Value):
                    self._obstruct(node, value)
        return None

    # layers and parameters

    def _parameter(self, node: fx.Node, result: Any) -> Value | None:
        """A stream of its own, in case it is added to another."""
        if not is_float(result) or result.dim() == 0:
            return None
        return Value(self.streams.start(result.shape[-1], str(node.target), "parameter"), -1)

    def _layer(self, node: fx.Node, result: Any) -> Value | None:
        module, name = module_of(self.module, node), str(node.target)  # type: ignore[arg-type]  # the graph
        read = self._of(node.args[0]) if node.args else None
        layer = module.layer if isinstance(module, EncodedLayer) else module
        if layer is None or obstacle(layer) is not None or not is_float(result):
            return self._unknown(node, result)
        axis = -1 - _SPATIAL_AXES[type(layer)]
        if read is not None and self._reads(node, layer, read, axis):
            self.streams.of(read).add_reader(name, read.affine)
        self.streams.note_read(name, read)
        kind: Kind = "embedding" if isinstance(layer, nn.Embedding) else "rows"
        value = Value(self.streams.start(result.shape[axis], name, kind), axis)
        if isinstance(module, EncodedLayer):
            why = f"layer {name!r}, which an earlier decision made sparse or encoded,"
            self._obstruct(node, value, read, why=why)
        return value

    def _reads(self, node: fx.Node, module: nn.Module, read: Value, axis: int) -> bool:
        """Whether the layer's columns can take a rotation over; else it is an obstacle."""
        grouped = isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1
        padded = isinstance(module, nn.Conv1d | nn.Conv2d) and read.affine.bias is not None
        if read.axis != axis or read.squared or grouped or padded:
            self._obstruct(node, read)
            return False
        return True

    def _output(self, node: fx.Node) -> Value | None:
        for source in node.all_input_nodes:
            value = self._of(source)
            if value is not None and value.axis == -1 and not value.squared:
                self.streams.of(value).exits.append((node, source, value.affine))
            else:
                self._obstruct(node, value, why="an output of the model")
        return None

    # operators that move values

    def _same(self, node: fx.Node, result: Any) -> Value | None:
        value = self._of(node.args[0])
        if value is not None and not is_float(result):
            self._obstruct(node, value)
        return value if is_float(result) else None

    def _moved(self, node: fx.Node, result: Any) -> Found:
        inputs = node.all_input_nodes[:1] if operation(node) is ATEN.expand_as else node.all_input_nodes
        sources = [s for s in inputs if is_float(self.env[s])]
        values = [self._values.get(s) for s in sources]
        known = [v for v in values if isinstance(v, Value)]
        if not known:
            return None
        first = known[0]
        if len(known) < len(sources) or any(v.affine != first.affine or v.squared for v in known):
            return self._unknown(node, result)
        for other in known[1:]:
            self._join(node, first, other)
        numbers = moved(node, lambda n: self._numbers(n, first) if n in sources else self.env[n])
        if isinstance(numbers, Tensor):
            return self._landed(node, first, numbers)
        return tuple(self._landed(node, first, part) for part in numbers)

    def _numbers(self, node: fx.Node, value: Value) -> Tensor:
        """The number of its channel in place of each of a node's values."""
        shape = self.env[node].shape
        own = self._values[node]
        axis = own.axis if isinstance(own, Value) else value.axis
        return torch.arange(shape[axis]).reshape(-1, *(1,) * (-axis - 1)).expand(shape)

    def _landed(self, node: fx.Node, value: Value, numbers: Tensor) -> Value | None:
        """The value, on the axis on which all its channels now lie in order."""
        width = self.streams.of(value).width
        for axis in range(-numbers.dim(), 0):
            order = torch.arange(width).reshape(-1, *(1,) * (-axis - 1))
            if numbers.shape[axis] == width and bool((numbers == order).all()):
                return Value(value.stream, axis, value.affine)
        self._obstruct(node, value)
        return None

    def _item(self, node: fx.Node, result: Any) -> Found:
        several, index = self._values.get(node.args[0]), node.args[1]  # type: ignore[arg-type]  # a node
        return several[index] if isinstance(several, tuple) and isinstance(index, int) else None

    # arithmetic

    def _sum(self, node: fx.Node, result: Any) -> Value | None:
        one, other = (self._of(argument) for argument in node.args[:2])
        value = one if one is not None else other
        if value is None:
            return None
        if one is not None and other is not None:
            return self._added(node, one, other)
        plain = node.args[1] if one is not None else node.args[0]
        if value.affine != PLAIN or value.squared or not self._same_for_all_channels(plain, value):
            return self._unknown(node, result)
        self.streams.of(value).keeps_mean = True
        return value

    def _added(self, node: fx.Node, one: Value, other: Value) -> Value | None:
        for value, beside, argument in ((one, other, node.args[1]), (other, one, node.args[0])):
            alone = isinstance(argument, fx.Node) and argument.op == "get_attr" and beside.affine == PLAIN
            scaled = value.affine.weight is not None and value.affine.bias is None
            if alone and scaled and self._seen(argument).dim() == 1 and operation(node) is not ATEN.sub:
                return self._with_affine(node, value, Affine(value.affine.weight, str(argument.target)))  # type: ignore[union-attr]
        if one.affine != PLAIN or other.affine != PLAIN or one.squared or other.squared:
            normed = one.affine != PLAIN or other.affine != PLAIN
            why = f"{_place(node)} adds what a norm has scaled (post-norm)" if normed else ""
            self._obstruct(node, one, other, why=why)
            return None
        self._join(node, one, other)
        return Value(one.stream, one.axis)

    def _product(self, node: fx.Node, result: Any) -> Value | None:
        first, second = node.args[:2]
        one, other = self._of(first), self._of(second)
        if one is not None and first is second:
            return self._square(node, result)
        if one is not None and other is not None:
            for scaled, by in ((one, second), (other, first)):
                weight = isinstance(by, fx.Node) and by.op == "get_attr" and self._seen(by).dim() == 1
                if isinstance(by, fx.Node) and weight and scaled.affine == PLAIN and scaled.axis == -1:
                    return self._with_affine(node, scaled, Affine(str(by.target)))
            self._obstruct(node, one, other)
            return None
        value = one if one is not None else other
        return None if value is None else self._scaled(node, value, second if one is not None else first)

    def _quotient(self, node: fx.Node, result: Any) -> Value | None:
        one, other = (self._of(argument) for argument in node.args[:2])
        if other is not None or "rounding_mode" in node.kwargs:
            self._obstruct(node, one, other)
            return None
        return None if one is None else self._scaled(node, one, node.args[1])

    def _scaled(self, node: fx.Node, value: Value, factor: object) -> Value | None:
        if value.squared or value.affine.bias is not None or not self._same_for_all_channels(factor, value):
            self._obstruct(node, value)
            return None
        return value

    def _same_for_all_channels(self, argument: object, value: Value) -> bool:
        """Whether an argument outside all streams is a number, or constant along the channels."""
        if not isinstance(argument, fx.Node) or not isinstance(self._seen(argument), Tensor):
            return True
        if self._values.get(argument) is not None:
            return False
        outside: Tensor = self._seen(argument)
        missing = outside.dim() < -value.axis
        return missing or outside.shape[value.axis] == 1 or outside.stride(value.axis) == 0

    def _matmul(self, node: fx.Node, result: Any) -> Value | None:
        """Sums over tokens, weighted by what lies outside of the stream."""
        left, right = (self._of(argument) for argument in node.args[:2])
        weighted = left is None and right is not None and right.axis == -1 and result.dim() > 1
        if right is None or not weighted or right.affine.bias is not None or right.squared:
            self._obstruct(node, left, right)
            return None
        return right

    def _masked(self, node: fx.Node, result: Any) -> Value | None:
        value = self._of(node.args[0])
        if value is None:
            return None
        number = node.args[2]
        zero = isinstance(number, int | float) and not number
        return self._scaled(node, value, node.args[1]) if zero else self._unknown(node, result)

    # norms

    def _with_affine(self, node: fx.Node, value: Value, affine: Affine) -> Value:
        for name in (affine.weight, affine.bias):
            if name is not None:
                self._normed.setdefault(name, set()).add(node)
        self.streams.of(value).norms.add(affine)
        return Value(value.stream, value.axis, affine)

    def _norm(self, node: fx.Node, result: Any) -> Value | None:
        value, shape = self._of(node.args[0]), node.args[1]
        weights = [a for a in node.args[2:4] if isinstance(a, fx.Node)]
        named = all(a.op == "get_attr" for a in weights)
        if value is None:
            return None
        whole = value.axis == -1 and isinstance(shape, list | tuple) and len(shape) == 1
        if value.affine != PLAIN or value.squared or not whole or not named:
            return self._unknown(node, result)
        self.streams.of(value).keeps_mean |= operation(node) is ATEN.layer_norm
        if not weights:
            return value
        names = [str(a.target) if isinstance(a, fx.Node) else None for a in (*node.args[2:4], None, None)]
        return self._with_affine(node, value, Affine(names[0], names[1]))

    def _square(self, node: fx.Node, result: Any) -> Value | None:
        value = self._of(node.args[0])
        power = 2 if operation(node) is not ATEN.pow else node.args[1]
        if value is not None and (value.affine != PLAIN or value.squared or power != 2):
            return self._unknown(node, result)
        return None if value is None else Value(value.stream, value.axis, squared=True)

    def _reduced(self, node: fx.Node, result: Any) -> Value | None:
        value = self._of(node.args[0])
        if value is None:
            return None
        rank = self._seen(node.args[0]).dim()
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        several = given if isinstance(given, list | tuple) else [] if given is None else [given]
        axes = {a % rank - rank for a in several if isinstance(a, int)} or set(range(-rank, 0))
        if value.axis in axes:
            return self._over_channels(node, value)
        if value.squared or (value.affine.bias is not None and operation(node) is not ATEN.mean):
            return self._unknown(node, result)
        lost = 0 if result.dim() == rank else sum(a > value.axis for a in axes)
        return Value(value.stream, value.axis + lost, value.affine)

    def _over_channels(self, node: fx.Node, value: Value) -> Value | None:
        """A sum over channels: of squares it stays when they are rotated, of values if their mean is kept."""
        if not value.squared:
            if value.affine != PLAIN:
                self._obstruct(node, value)
            self.streams.of(value).keeps_mean = True
        return None

    def _variance(self, node: fx.Node, result: Any) -> Value | None:
        value = self._of(node.args[0])
        over_channels = len(node.args) > 1 and self._is_last(node, node.args[1])
        if value is None or value.axis != -1 or value.squared or not over_channels:
            return self._unknown(node, result)
        return self._over_channels(node, value)

    def _length(self, node: fx.Node, result: Any) -> Value | None:
        """The Euclidean length over the channels stays."""
        value = self._of(node.args[0])
        order = node.args[1] if len(node.args) > 1 else 2
        over_channels = len(node.args) > 2 and self._is_last(node, node.args[2])
        plain = value is not None and value.affine == PLAIN and not value.squared and value.axis == -1
        return None if plain and order == 2 and over_channels else self._unknown(node, result)

    def _is_last(self, node: fx.Node, axes: object) -> bool:
        return axes in ([-1], [self._seen(node.args[0]).dim() - 1])

    def _check_norms(self) -> None:
        """A norm's weights become ones and zeros: nothing else may read them."""
        parameters = [n for n in self.graph.nodes if n.op == "get_attr" and n.target in self._normed]
        for parameter in parameters:
            name = str(parameter.target)
            if set(parameter.users) - self._normed[name]:
                for stream in self.streams.found():
                    if any(name in (norm.weight, norm.bias) for norm in stream.norms):
                        stream.obstacles.append(f"what reads {name!r}, besides norms,")


def _place(node: fx.Node) -> str:
    """The operator, and the layer before it."""
    if node.op == "call_module":
        return f"layer {str(node.target)!r}"
    before = node
    while before.op != "call_module" and before.all_input_nodes:
        before = before.all_input_nodes[0]
    after = f" after layer {str(before.target)!r}" if before.op == "call_module" else ""
    return f"{operation(node)} at {node.name!r}{after}"
