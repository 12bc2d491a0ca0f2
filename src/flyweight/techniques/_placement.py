"""Where static quantization rounds activations, so that integer kernels can take over.

A kernel on integers needs codes on every input and, for convolutions and element-wise operators, on its
output. A value is rounded when an integer layer reads it or a convolution writes it, and the property
spreads: an operator that could run on integers does so when all its inputs are rounded. Operators that only
move values keep their input's scale.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from flyweight.measure.graph import ATEN, module_of

# fused into the operator before them, from 0 on: the value is rounded after, not before
_ACTIVATIONS: frozenset[Any] = frozenset(
    {
        ATEN.relu.default,
        ATEN.relu_.default,
        ATEN.relu6.default,
        ATEN.relu6_.default,
        ATEN.hardtanh.default,
        ATEN.hardtanh_.default,
    }
)
# compute on integers when they have two tensor inputs and both are rounded
_ARITHMETIC: frozenset[Any] = frozenset(
    {
        ATEN.add.Tensor,
        ATEN.add_.Tensor,
        ATEN.mul.Tensor,
        ATEN.mul_.Tensor,
        operator.add,
        operator.mul,
    }
)
# compute on integers when all their tensor inputs are rounded
_COMPUTES: frozenset[Any] = frozenset(
    {
        *_ARITHMETIC,
        ATEN.cat.default,
        ATEN.avg_pool2d.default,
        ATEN.adaptive_avg_pool2d.default,
        ATEN.mean.dim,
        ATEN.sigmoid.default,
        ATEN.leaky_relu.default,
        *_ACTIVATIONS,
    }
)
# only move values (padding adds zeros, which every grid holds): the scale of the input serves the output
_MOVES: frozenset[Any] = frozenset(
    {
        ATEN.max_pool2d.default,
        ATEN.flatten.using_ints,
        ATEN.view.default,
        ATEN.reshape.default,
        ATEN.permute.default,
        ATEN.transpose.int,
        ATEN.slice.Tensor,
        ATEN.squeeze.dim,
        ATEN.unsqueeze.default,
        ATEN.contiguous.default,
        ATEN.clone.default,
        ATEN.dropout.default,
        ATEN.pad.default,
        ATEN.constant_pad_nd.default,
        ATEN.upsample_nearest2d.vec,
    }
)


@final
@dataclass(frozen=True)
class Placement:
    """Values to round: each node of ``own`` gets a quantizer; a key of ``shared`` reuses its value's."""

    own: tuple[fx.Node, ...]
    shared: dict[fx.Node, fx.Node]

    def quantizer_of(self, node: fx.Node) -> fx.Node | None:
        """The node whose quantizer rounds this one's value, or None where it stays float."""
        return node if node in self.own else self.shared.get(node)


def place(graph: fx.GraphModule, layers: Iterable[str], *, reads_its_own: fx.Node | None = None) -> Placement:
    """The values to round so that ``layers`` (names of modules the graph calls) run on integers.

    Args:
        graph: From `flyweight.measure.graph.capture`.
        layers: Names of modules it calls.
        reads_its_own: A call of a layer that rounds its input itself.
    """
    chosen = set(layers)
    integer = [n for n in graph.graph.nodes if n.op == "call_module" and n.target in chosen]
    rounded: set[fx.Node] = {n for n in integer if not isinstance(_layer(graph, n), nn.Linear)}
    rounded |= {source for n in integer if n is not reads_its_own for source in _tensor_inputs(n)}
    _spread(graph, rounded)
    for node in graph.graph.nodes:
        if node in rounded and _fused_into_next(node, rounded):
            rounded.discard(node)
    shared: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node in rounded and node.target in _MOVES and _zero_padded(node):
            source = node.args[0]
            if source in rounded:
                shared[node] = shared.get(source, source)
    own = tuple(n for n in graph.graph.nodes if n in rounded and n not in shared)
    return Placement(own, shared)


def _spread(graph: fx.GraphModule, rounded: set[fx.Node]) -> None:
    before = -1
    while before != len(rounded):
        before = len(rounded)
        for node in graph.graph.nodes:
            inputs = _tensor_inputs(node)
            if (
                node.target in _MOVES | _COMPUTES
                and inputs
                and _zero_padded(node)
                and all(i in rounded for i in inputs)
            ):
                if node.target in _COMPUTES and not _is_tensor_arithmetic(node):
                    continue
                rounded.add(node)
    # a value that only moves on to the model's output gains nothing from being rounded again
    for node in reversed(list(graph.graph.nodes)):
        if node in rounded and node.op == "call_function" and all(user.op == "output" for user in node.users):
            rounded.discard(node)


def _fused_into_next(node: fx.Node, rounded: set[fx.Node]) -> bool:
    users = list(node.users)
    return len(users) == 1 and _starts_at_zero(users[0]) and users[0] in rounded


def _starts_at_zero(node: fx.Node) -> bool:
    """Whether it is an activation that uint8 codes from 0 on do the work of."""
    if node.target in {ATEN.hardtanh.default, ATEN.hardtanh_.default}:
        return len(node.args) > 1 and not node.args[1]
    return node.target in _ACTIVATIONS


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return [
        n
        for n in node.all_input_nodes
        if isinstance(n.meta.get("val"), Tensor) and n.meta["val"].is_floating_point()
    ]


def _is_tensor_arithmetic(node: fx.Node) -> bool:
    """Two tensors where two are needed (adding a constant stays float), and ``alpha`` is 1."""
    if node.target not in _ARITHMETIC:
        return True
    return bool(all(isinstance(a, fx.Node) for a in node.args[:2]) and node.kwargs.get("alpha", 1) == 1)


def _zero_padded(node: fx.Node) -> bool:
    if node.target is ATEN.pad.default:
        mode = node.args[2] if len(node.args) > 2 else "constant"
        value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value", 0.0)
        return bool(mode == "constant" and not value)
    if node.target is ATEN.constant_pad_nd.default:
        return len(node.args) < 3 or not node.args[2]
    return True


def _layer(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    module = module_of(graph, node)
    inner = getattr(module, "layer", None)
    return inner if isinstance(inner, nn.Module) else module


def insert(graph: fx.GraphModule, placement: Placement, quantizers: dict[fx.Node, torch.nn.Module]) -> None:
    """Round the placed values, in place; ``quantizers`` has one for each node of ``placement.own``."""
    names: dict[fx.Node, str] = {}
    taken = sum(name.startswith("quantizer_") for name, _ in graph.named_children())  # an earlier decision's
    for index, node in enumerate(placement.own, taken):
        names[node] = f"quantizer_{index}"
        graph.add_submodule(names[node], quantizers[node])
    for node in [*placement.own, *placement.shared]:
        source = placement.shared.get(node, node)
        users = list(node.users)
        with graph.graph.inserting_after(_last_placeholder(graph) if node.op == "placeholder" else node):
            call = graph.graph.call_module(names[source], (node,))
        call.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, call)
    graph.graph.lint()
    graph.recompile()


def _last_placeholder(graph: fx.GraphModule) -> fx.Node:
    placeholders: list[fx.Node] = [n for n in graph.graph.nodes if n.op == "placeholder"]
    return placeholders[-1]
