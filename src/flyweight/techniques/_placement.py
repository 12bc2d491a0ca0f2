"""Where static quantization rounds activations, so that integer kernels can take over.

A kernel on integers needs codes on every input and, for convolutions and element-wise operators, on its
output. A value is rounded when an integer layer reads it or a convolution writes it, and the property
spreads: an operator that could run on integers does so when all its inputs are rounded. Operators that only
move values keep their input's scale.

Layers may read fewer bits than additions and pools do. A value that both read is rounded once for each width.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, fx, nn

from flyweight.measure.graph import ATEN, module_of
from flyweight.tensors.activation import INTEGER_BITS, StaticQuantizer
from flyweight.tensors.encoded import EncodedLayer

JOINT_BITS = INTEGER_BITS  # of what additions, pools and layers outside the plan read

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
    """Values to round: each node of ``own`` gets a quantizer; a key of ``shared`` reuses its value's.

    Attributes:
        own: In the order of the graph.
        shared: Moved value to the value it was before.
        bits: Call of a layer to the bits of what it reads; `JOINT_BITS` for all else.
    """

    own: tuple[fx.Node, ...]
    shared: dict[fx.Node, fx.Node]
    bits: Mapping[fx.Node, int] = field(default_factory=dict)

    def source_of(self, node: fx.Node) -> fx.Node | None:
        """The node whose quantizer rounds this one's value, or None where it stays float."""
        return node if node in self.own else self.shared.get(node)

    def readers(self, node: fx.Node) -> dict[int, list[fx.Node]]:
        """What reads a rounded value, by the bits it reads."""
        found: dict[int, list[fx.Node]] = {}
        for user in node.users:
            if not isinstance(_called(user), StaticQuantizer):
                found.setdefault(self.bits_of(user), []).append(user)
        return found

    def grids(self) -> tuple[tuple[fx.Node, int], ...]:
        """(value, bits) of each quantizer, in the order of the graph."""
        read: dict[fx.Node, set[int]] = {node: set(self.readers(node)) for node in self.own}
        for node, source in self.shared.items():
            read[source] |= set(self.readers(node))
        return tuple((node, bits) for node in self.own for bits in sorted(read[node], reverse=True))

    def bits_of(self, user: fx.Node) -> int:
        """Bits of the codes that a node reads."""
        if user in self.shared:  # it moves the value on: rounded as its readers want it, if they agree
            wanted = {self.bits_of(reader) for reader in user.users}
            return wanted.pop() if len(wanted) == 1 else JOINT_BITS
        return self.bits.get(user, JOINT_BITS)


def _called(node: fx.Node) -> nn.Module | None:
    owner = node.graph.owning_module
    return None if owner is None or node.op != "call_module" else owner.get_submodule(str(node.target))


def place(
    graph: fx.GraphModule,
    layers: Iterable[str],
    *,
    reads_its_own: fx.Node | None = None,
    bits: Mapping[str, int] | None = None,
) -> Placement:
    """The values to round so that ``layers`` (names of modules the graph calls) run on integers.

    What an earlier decision rounded stays as it is.

    Args:
        graph: From `flyweight.measure.graph.capture`.
        layers: Names of modules it calls.
        reads_its_own: A call of a layer that rounds its input itself.
        bits: Of what each layer reads; None is `JOINT_BITS` for all.
    """
    chosen = set(layers)
    integer = [n for n in graph.graph.nodes if n.op == "call_module" and n.target in chosen]
    rounded: set[fx.Node] = {n for n in integer if not isinstance(layer_called(graph, n), nn.Linear)}
    rounded |= {source for n in integer if n is not reads_its_own for source in _tensor_inputs(n)}
    done = {n for n in graph.graph.nodes if isinstance(_called(n), StaticQuantizer)}
    _spread(graph, rounded, done)
    for node in graph.graph.nodes:
        if node in rounded and _fused_into_next(node, rounded):
            rounded.discard(node)
    rounded = {n for n in rounded - done if not done.issuperset(n.users)}
    shared: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node in rounded and node.target in _MOVES and _zero_padded(node):
            source = node.args[0]
            if source in rounded:
                shared[node] = shared.get(source, source)
    own = tuple(n for n in graph.graph.nodes if n in rounded and n not in shared)
    return Placement(own, shared, {} if bits is None else {n: bits[str(n.target)] for n in integer})


def _spread(graph: fx.GraphModule, rounded: set[fx.Node], done: set[fx.Node]) -> None:
    """Add, in place, what can run on integers: all its inputs are rounded, now or by an earlier decision."""
    before = -1
    while before != len(rounded):
        before = len(rounded)
        for node in graph.graph.nodes:
            inputs = _tensor_inputs(node)
            if (
                node.target in _MOVES | _COMPUTES
                and inputs
                and _zero_padded(node)
                and all(i in rounded or i in done for i in inputs)
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


def layer_called(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, without its wrapper."""
    module = module_of(graph, node)
    return module.layer if isinstance(module, EncodedLayer) else module


def insert(
    graph: fx.GraphModule, placement: Placement, quantizers: Mapping[tuple[fx.Node, int], nn.Module]
) -> None:
    """Round the placed values, in place; ``quantizers`` has one for each of ``placement.grids()``."""
    names: dict[tuple[fx.Node, int], str] = {}
    taken = sum(name.startswith("quantizer_") for name, _ in graph.named_children())  # an earlier decision's
    for index, grid in enumerate(placement.grids(), taken):
        names[grid] = f"quantizer_{index}"
        graph.add_submodule(names[grid], quantizers[grid])
    read = {node: placement.readers(node) for node in [*placement.own, *placement.shared]}
    for node, readers in read.items():
        source = placement.shared.get(node, node)
        for bits, users in readers.items():
            with graph.graph.inserting_after(_last_placeholder(graph) if node.op == "placeholder" else node):
                call = graph.graph.call_module(names[source, bits], (node,))
            call.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, call)
    graph.graph.lint()
    graph.recompile()


def _last_placeholder(graph: fx.GraphModule) -> fx.Node:
    placeholders: list[fx.Node] = [n for n in graph.graph.nodes if n.op == "placeholder"]
    return placeholders[-1]
