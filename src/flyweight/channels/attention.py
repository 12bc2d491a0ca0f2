"""Causal self-attention in a captured graph: what it reads as keys and as values, and from which layers.

Both `scaled_dot_product_attention` and products with a softmax between them are found. Whether a token sees
later ones is looked up in the weights of the sum, on an example: what is exactly 0 above the diagonal, by
whatever mask, is causal.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.channels.moves import MOVES, SAME, operation
from flyweight.measure.graph import ATEN, module_of
from flyweight.tensors.encoded import EncodedLayer

_FUSED = ATEN.scaled_dot_product_attention
KEYS = 1  # position among the arguments of the product with queries, or of the fused operator
VALUES = {False: 1, True: 2}  # likewise, by whether the operator is fused
_PRODUCTS = frozenset({ATEN.matmul, ATEN.bmm})
_SOFTMAX = frozenset({ATEN.softmax, ATEN._softmax, ATEN._safe_softmax})
# mix what they read by what they multiply it with: what they put out is no longer any layer's
_MIXES = frozenset(
    {
        _FUSED,
        *_PRODUCTS,
        ATEN.mm,
        ATEN.baddbmm,
        ATEN.addmm,
        ATEN.linear,
        ATEN.einsum,
        ATEN.conv1d,
        ATEN.conv2d,
    }
)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@final
@dataclass(frozen=True, eq=False)
class Read:
    """Keys or values, as one attention reads them.

    Attributes:
        node: What is read; tokens and the channels of a head are its last two axes, in this order but for the
            keys of a product.
        layers: Names of the layers that it was computed from, nothing else being multiplied in between.
        heads: Of one token, without the copies that grouped queries read.
        size: Channels of a head.
    """

    node: fx.Node
    layers: tuple[str, ...]
    heads: int
    size: int


@final
@dataclass(frozen=True, eq=False)
class Attention:
    """One attention.

    Attributes:
        scores: The product of queries with keys, which are its second argument.
        sums: What reads the values; the same node where both are one operator.
        keys: Read by ``scores``.
        values: Read by ``sums``.
    """

    scores: fx.Node
    sums: fx.Node
    keys: Read
    values: Read

    @property
    def is_fused(self) -> bool:
        """Whether scores and sums are one operator."""
        return self.scores is self.sums


@final
@dataclass(frozen=True, eq=False)
class Attentions:
    """What a graph has.

    Attributes:
        causal: Self-attention in which no token sees later ones, with keys and values of layers.
        others: One sentence on each of the others.
    """

    causal: tuple[Attention, ...]
    others: tuple[str, ...]


@torch.no_grad()
def attentions(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Attentions:
    """Every attention of a graph from `flyweight.measure.graph.capture`.

    Args:
        graph: Runs once.
        inputs: Of one example, in the graph's order, of two tokens or more.
    """
    tracer = _Tracer(graph)
    tracer.run(*inputs)
    return Attentions(tuple(tracer.found), tuple(tracer.others))


class _NotTaken(Exception):
    """An attention is left out; says why."""


@final
class _Tracer(fx.Interpreter):
    """Runs the graph, and knows of each value by which layer calls, products and softmaxes it was made."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._graph = graph
        self._origins: dict[fx.Node, frozenset[fx.Node]] = {}
        self._shapes: dict[fx.Node, torch.Size] = {}
        self._leak: dict[fx.Node, str | None] = {}
        self.found: list[Attention] = []
        self.others: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._origins[n] = self._origins_of(n)
        if isinstance(result, Tensor):
            self._shapes[n] = result.shape
        if operation(n) in _SOFTMAX:
            self._leak[n] = _not_causal(result) if self._over_last_axis(n) else "is not over the last axis"
        if self._sums_up(n):
            try:
                self.found.append(self._attention(n))
            except _NotTaken as reason:
                self.others.append(f"the attention at {n.name!r} {reason}")
        return result

    def _origins_of(self, node: fx.Node) -> frozenset[fx.Node]:
        module = module_of(self._graph, node)
        layer = module.layer if isinstance(module, EncodedLayer) else module
        if isinstance(layer, nn.Embedding):
            return frozenset()
        read = frozenset().union(*(self._origins[source] for source in node.all_input_nodes))
        ends = isinstance(layer, _LAYERS) or (read and operation(node) in _MIXES | _SOFTMAX)
        return frozenset({node}) if ends else read

    def _over_last_axis(self, softmax: fx.Node) -> bool:
        return softmax.args[1] in {-1, len(self._shapes[softmax]) - 1}

    def _sums_up(self, node: fx.Node) -> bool:
        """Whether it is an attention, or a product with weights that a softmax made alone."""
        if operation(node) is _FUSED:
            return True
        first = node.args[0] if operation(node) in _PRODUCTS else None
        if not isinstance(first, fx.Node):
            return False
        origins = self._origins[first]
        return len(origins) == 1 and all(operation(origin) in _SOFTMAX for origin in origins)

    def _attention(self, sums: fx.Node) -> Attention:
        if operation(sums) is _FUSED:
            self._check_causal(_not_causal(self._weights(sums)))
            return Attention(sums, sums, self._read(sums, KEYS, -1), self._read(sums, VALUES[True], -1))
        (softmax,) = self._origins[sums.args[0]]  # type: ignore[index]  # `_sums_up` has looked
        self._check_causal(self._leak[softmax])
        scored = self._origins[softmax.args[0]]  # type: ignore[index]  # a tensor
        if len(scored) != 1 or not all(operation(node) in _PRODUCTS for node in scored):
            raise _NotTaken("has scores that are not of one product of queries with keys")
        (scores,) = scored
        if any(attention.scores is scores for attention in self.found):
            raise _NotTaken("shares its scores with another")
        return Attention(scores, sums, self._read(scores, KEYS, -2), self._read(sums, VALUES[False], -1))

    def _check_causal(self, reason: str | None) -> None:
        if reason is not None:
            raise _NotTaken(reason)

    def _weights(self, fused: fx.Node) -> Tensor:
        """(..., tokens, tokens) by which values are summed up: the sums of the unit vectors."""
        args: Any = fx.node.map_arg(fused.args, lambda n: self.env[n])
        kwargs: Any = fx.node.map_arg(dict(fused.kwargs), lambda n: self.env[n])
        query, key, value, *others = args
        units = torch.eye(value.shape[-2], dtype=value.dtype).expand(*value.shape[:-1], -1)
        weights: Tensor = fused.target(query, key, units, *others, **kwargs)  # type: ignore[operator]
        return weights

    def _read(self, reader: fx.Node, at: int, head_axis: int) -> Read:
        node = reader.args[at]
        assert isinstance(node, fx.Node)
        origins = sorted(self._origins[node])
        strangers = [origin for origin in origins if not isinstance(self._called(origin), _LAYERS)]
        if strangers or not origins:
            made = f"{strangers[0].name!r}, which is no layer" if strangers else "no layer"
            raise _NotTaken(f"reads what was made by {made}")
        shape = self._shapes[node]
        size, tokens = shape[head_axis], shape[-3 - head_axis]
        names = tuple(dict.fromkeys(str(origin.target) for origin in origins))
        return Read(node, names, self._stored(node) // (tokens * size), size)

    def _called(self, node: fx.Node) -> nn.Module | None:
        module = module_of(self._graph, node)
        return module.layer if isinstance(module, EncodedLayer) else module

    def _stored(self, node: fx.Node) -> int:
        """Numbers in a tensor before they were copied for several queries."""
        fewest = self._shapes[node].numel()
        while operation(node) in MOVES | SAME | {operator.getitem}:
            sources = [source for source in node.all_input_nodes if self._origins[source]]
            if len(sources) != 1:
                break
            (node,) = sources
            fewest = min(fewest, self._shapes[node].numel()) if node in self._shapes else fewest
        return fewest


def _not_causal(weights: Float[Tensor, " ..."]) -> str | None:
    """Why weights of a sum over tokens are not causal self-attention's; None where they are."""
    tokens = weights.shape[-1]
    if weights.dim() < 2 or weights.shape[-2] != tokens:
        return "reads other tokens than those that ask"
    if tokens == 1:
        return "has one token in the example inputs: give an example of two or more"
    return "sees later tokens, so that nothing of it is kept" if bool(weights.triu(1).any()) else None
