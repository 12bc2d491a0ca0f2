"""Heads of attention: which rows of the value layer meet which columns of the output layer.

Between the two lie only moves and the sum over tokens, which is the same for all channels of a head: any
rotation of a head's channels that one layer makes can be undone by the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor, fx, nn

from flyweight.channels.moves import MOVES, SAME, is_float, moved, operation
from flyweight.measure.graph import ATEN, module_of
from flyweight.tensors.encoded import obstacle

_SUMS = frozenset({ATEN.matmul, ATEN.bmm, ATEN.scaled_dot_product_attention})


@final
@dataclass(frozen=True, eq=False)
class ValueHeads:
    """One attention.

    Attributes:
        value: Name of the layer.
        out: Likewise.
        rows: Of ``value``, one head a row.
        columns: Of ``out``, one head of the queries a row, in the order of ``rows``.
    """

    value: str
    out: str
    rows: Int[Tensor, "heads size"]
    columns: Int[Tensor, "query_heads size"]


@final
class HeadTracer(fx.Interpreter):
    """Runs the graph once, at batch 1, and with the values the numbers of channels that have only moved."""

    def __init__(self, graph: fx.GraphModule, layers: Collection[str]) -> None:
        super().__init__(graph)
        owners = Counter(id(p) for _, p in graph.named_parameters(remove_duplicate=False))
        self._shared = {key for key, count in owners.items() if count > 1}
        calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
        self._layers = {name for name in layers if calls[name] == 1}
        self._written: dict[fx.Node, tuple[str, Tensor]] = {}
        self._summed: dict[fx.Node, tuple[str, Tensor, Tensor]] = {}
        self.found: list[ValueHeads] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._follow(n, result)
        return result

    def _follow(self, node: fx.Node, result: Any) -> None:
        if node.op == "call_module":
            self._layer(node, result)
        elif operation(node) in _SUMS:
            self._sum(node, result)
        elif operation(node) in MOVES | SAME and is_float(result):
            self._move(node)

    def _layer(self, node: fx.Node, result: Any) -> None:
        name, layer = str(node.target), module_of(self.module, node)  # type: ignore[arg-type]  # the graph
        taken = isinstance(layer, nn.Linear) and obstacle(layer) is None and name in self._layers
        if not taken or any(id(p) in self._shared for p in layer.parameters()):  # type: ignore[union-attr]
            return
        source = node.args[0]
        if isinstance(source, fx.Node) and source in self._summed and len(source.users) == 1:
            value, rows, places = self._summed[source]
            self._end(name, value, rows, places)
        if len(node.users) == 1:
            self._written[node] = name, torch.arange(result.shape[-1]).expand(result.shape)

    def _move(self, node: fx.Node) -> None:
        sources = [s for s in node.all_input_nodes if is_float(self.env[s])]
        if len(sources) != 1 or len(node.users) != 1:
            return
        (source,) = sources
        if source in self._written:
            name, numbers = self._written[source]
            self._written[node] = name, self._moved(node, source, numbers)
        if source in self._summed:
            name, rows, places = self._summed[source]
            self._summed[node] = name, rows, self._moved(node, source, places)

    def _moved(self, node: fx.Node, source: fx.Node, numbers: Tensor) -> Tensor:
        if operation(node) in SAME:
            return numbers
        found: Tensor = moved(node, lambda n: numbers if n is source else self.env[n])
        return found

    def _sum(self, node: fx.Node, result: Tensor) -> None:
        """Where channels lie on the last axis, and tokens on the one before."""
        last = 2 if operation(node) is ATEN.scaled_dot_product_attention else 1
        source = node.args[last]
        alone = len(node.users) == 1 and any(s is not source for s in node.all_input_nodes)
        if not isinstance(source, fx.Node) or source not in self._written or not alone:
            return
        name, numbers = self._written[source]
        first = numbers[..., :1, :]
        if numbers.dim() < 3 or bool((numbers != first).any()):
            return
        repeats = result.shape[-3] // numbers.shape[-3] if numbers.shape[-3] > 1 else 1
        if repeats > 1:  # grouped queries inside the operator
            first = first.repeat_interleave(repeats, -3)
        rows = first.expand(*result.shape[:-2], 1, result.shape[-1]).reshape(-1, result.shape[-1])
        places = torch.arange(rows.numel()).reshape(*result.shape[:-2], 1, -1).expand(result.shape)
        self._summed[node] = name, rows, places

    def _end(self, out: str, value: str, rows: Tensor, places: Tensor) -> None:
        """``places`` of the sum's result, of all heads, as the output layer's columns read them."""
        flat = places.reshape(-1, places.shape[-1])
        heads = torch.unique(rows, dim=0)
        count = self.module.get_submodule(value).out_features
        whole = _are_all(heads.flatten(), count) and _are_all(flat[0], rows.numel())
        if not whole or bool((flat != flat[0]).any()):
            return
        columns = torch.argsort(flat[0]).reshape(rows.shape)
        self.found.append(ValueHeads(value, out, heads, columns))


def _are_all(numbers: Tensor, count: object) -> bool:
    """Whether they are 0 to ``count`` - 1, each once."""
    return len(numbers) == count and torch.equal(numbers.sort().values, torch.arange(len(numbers)))


def value_heads(graph: fx.GraphModule, layers: Collection[str], inputs: list[Tensor]) -> Iterator[ValueHeads]:
    """Every attention whose value and output layer are named and have weights of their own.

    Args:
        graph: From `flyweight.measure.graph.capture`.
        layers: Names of layers that may change.
        inputs: Of one example, in the graph's order.
    """
    tracer = HeadTracer(graph, layers)
    tracer.run(*inputs)
    yield from tracer.found
