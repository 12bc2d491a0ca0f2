"""A captured graph cut into blocks: stretches that read one value and put out one.

A cut lies where a single activation is still needed later: after each residual addition of a CNN or a
transformer. Masks and positions, which the first chosen layer does not read, may pass by a cut.

Source: Li et al. 2021, arXiv:2102.05426, section 3.2 (blocks as the unit of reconstruction).
Differs: found on the graph, not by the names of modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx


@final
@dataclass(frozen=True, eq=False)
class Block:
    """A stretch of a graph.

    Attributes:
        nodes: In order.
        inputs: Nodes before it that it reads.
        outputs: Of its nodes, those that are needed afterwards.
        layers: Names of the chosen layers it calls, in order.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    layers: tuple[str, ...]


def blocks(graph: fx.GraphModule, layers: Sequence[str]) -> list[Block]:
    """The graph up to its last chosen layer's block, in order.

    Args:
        graph: From `flyweight.measure.graph.capture`.
        layers: Names of modules it calls.
    """
    chosen, found = set(layers), []
    nodes = [n for n in graph.graph.nodes if n.op != "output"]
    place = {node: index for index, node in enumerate(graph.graph.nodes)}
    last_use = {n: max((place[user] for user in n.users), default=-1) for n in nodes}
    varying = _varying(nodes, chosen)
    start, waiting = 0, False
    for index, node in enumerate(nodes):
        waiting = waiting or _calls(node, chosen)
        live = {n for n in varying if place[n] <= place[node] < last_use[n]}
        if waiting and (live == {node} or index == len(nodes) - 1):
            found.append(_block(nodes[start : index + 1], last_use, place, chosen))
            start, waiting = index + 1, False
    return found


def whole(graph: fx.GraphModule, layers: Sequence[str]) -> Block:
    """The graph as one block that reads its placeholders and puts out what the graph does.

    Args:
        graph: From `flyweight.measure.graph.capture`.
        layers: Names of modules it calls.
    """
    nodes = tuple(n for n in graph.graph.nodes if n.op != "output")
    called = dict.fromkeys(str(n.target) for n in nodes if _calls(n, set(layers)))
    outputs = next(n for n in graph.graph.nodes if n.op == "output").all_input_nodes
    return Block(nodes, (), tuple(outputs), tuple(called))


def _calls(node: fx.Node, chosen: set[str]) -> bool:
    return node.op == "call_module" and str(node.target) in chosen


def _varying(nodes: Sequence[fx.Node], chosen: set[str]) -> set[fx.Node]:
    """The activations: what the first chosen layer's input is made of, and all that is made of those."""
    waiting = [next((node for node in nodes if _calls(node, chosen)), nodes[0])]
    varying: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in varying and _is_float(node):
            varying.add(node)
            waiting += node.all_input_nodes
    for node in nodes:
        if _is_float(node) and any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    return {node for node in varying if node.op != "get_attr"}


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() if value is not None else True


def _block(
    nodes: Sequence[fx.Node], last_use: Mapping[fx.Node, int], place: Mapping[fx.Node, int], chosen: set[str]
) -> Block:
    inside = set(nodes)
    inputs = dict.fromkeys(s for node in nodes for s in node.all_input_nodes if s not in inside)
    layers = dict.fromkeys(str(n.target) for n in nodes if n.op == "call_module" and n.target in chosen)
    outputs = tuple(node for node in nodes if last_use[node] > place[nodes[-1]])
    return Block(tuple(nodes), tuple(inputs), outputs, tuple(layers))


def extracted(graph: fx.GraphModule, block: Block) -> fx.GraphModule:
    """The block as a module of its own that shares the graph's layers.

    It takes ``block.inputs`` by position and returns ``block.outputs``; placeholders of the graph inside the
    block come after them, by name.
    """
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {n: part.placeholder(f"read_{i}") for i, n in enumerate(block.inputs)}
    own = [n for n in block.nodes if n.op == "placeholder"]
    copies |= {n: part.placeholder(str(n.target)) for n in own}
    for node in block.nodes:
        if node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[n] for n in block.outputs))
    return fx.GraphModule(graph, part)


@final
class Stream:
    """The values between the blocks of a model, batch by batch, as the model runs block after block.

    Attributes:
        latest: Outputs of the block that ran last, for each batch.
    """

    def __init__(self, graph: fx.GraphModule, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self._graph, self._batches = graph, batches
        self._values: dict[fx.Node, list[Any]] = {}
        self.latest: list[tuple[Any, ...]] = []

    def inputs(self, block: Block, batch: int) -> tuple[Any, ...]:
        """What ``extracted`` takes for one batch."""
        own = [str(n.target) for n in block.nodes if n.op == "placeholder"]
        return (
            *(self._values[node][batch] for node in block.inputs),
            *(self._batches[batch][name] for name in own),
        )

    @torch.no_grad()
    def advance(self, block: Block, later: Sequence[Block]) -> None:
        """Compute the block's outputs for all batches; values that no later block reads are let go."""
        run = extracted(self._graph, block)
        self.latest = [run(*self.inputs(block, index)) for index in range(len(self._batches))]
        for index, node in enumerate(block.outputs):
            self._values[node] = [outputs[index] for outputs in self.latest]
        needed = {node for other in later for node in other.inputs}
        self._values = {node: value for node, value in self._values.items() if node in needed}
