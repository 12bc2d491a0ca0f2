"""One walk through a captured graph that computes every value twice: in float, and as far as it is quantized.

A layer is quantized when the walk reaches it, so that it is known what it will read and what it should put
out; all layers together cost two passes over the calibration data, or one where only the former is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from flyweight.errors import UnsupportedError
from flyweight.measure.graph import module_of
from flyweight.measure.sums import other_summand
from flyweight.model import copied
from flyweight.tensors.encoded import encoded_once

Batches = Sequence[Mapping[str, Tensor]]
# values of one place, batch by batch, to where they are kept until they were read: memory, or a disk
Keep = Callable[[Iterable[Any]], Sequence[Any]]


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """What a layer reads and ought to put out, batch by batch.

    Attributes:
        inputs: In the quantized model.
        outputs: What the float layer puts out in the float model, and what makes up for the error of what it
            is added to; computed as they are read. None where that is the float layer's output on
            ``inputs``.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor] | None


Visit = Callable[[str, Seen], None]


@torch.no_grad()
def walk(
    graph: fx.GraphModule,
    batches: Batches,
    layers: Sequence[str],
    visit: Visit,
    *,
    float_batches: Batches | None = None,
    keep: Keep = list,
    outputs: bool = True,
) -> None:
    """Reach ``layers`` in the order in which they run, and let ``visit`` quantize each in place.

    Args:
        graph: From `flyweight.measure.graph.capture`; its layers are changed by ``visit`` alone.
        batches: Calibration batches, input name to (batch, ...).
        layers: Names of modules the graph calls. One that it calls twice is visited at the first call.
        visit: Given a layer's name and what it reads; the layer must compute quantized afterwards.
        float_batches: What the graph reads in the float model, where it is part of one and quantized layers
            lie before it; None where it reads the same.
        keep: Where the values between layers are kept.
        outputs: Tell what layers ought to put out in the float model; without, that is not computed.

    Raises:
        UnsupportedError: The graph does not call a layer.
    """
    check_called(graph, layers)
    walker = _Walk(graph, batches, set(layers), float_batches, keep, outputs=outputs)
    for node in graph.graph.nodes:
        if not walker.to_visit:
            return
        walker.reach(node, visit)


def check_called(graph: fx.GraphModule, layers: Sequence[str]) -> None:
    """Raise UnsupportedError where the graph does not call a layer."""
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    lost = next((name for name in layers if name not in called), None)
    if lost is not None:
        raise UnsupportedError(
            f"layer {lost!r} is not found in the traced model: its output is not used, or something else "
            "computes with its weight; leave it out of the plan"
        )


@final
class _Walk:
    def __init__(
        self,
        graph: fx.GraphModule,
        batches: Batches,
        layers: set[str],
        float_batches: Batches | None,
        keep: Keep,
        *,
        outputs: bool,
    ) -> None:
        self._graph, self._batches, self._keep, self._twice = graph, batches, keep, outputs
        self._float_batches = float_batches
        called = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
        self._called_again = {name for name in layers if called[name] > 1}
        self._float_layers: dict[str, nn.Module] = {}
        self.to_visit = {name for name in layers if called[name]}
        self._float: dict[fx.Node, Sequence[Any]] = {}
        self._quantized: dict[fx.Node, Sequence[Any]] = {}
        self._readers = {node: len(node.users) for node in graph.graph.nodes}

    def reach(self, node: fx.Node, visit: Visit) -> None:
        """Compute one node, both ways."""
        if node.op == "output":
            return
        name = str(node.target) if node.op == "call_module" else ""
        if name in self.to_visit:
            self._quantize(node, name, visit)
        elif node.op == "placeholder":
            self._read(node)
        else:
            self._pass(node, name)
        self._forget(node)

    def _read(self, node: fx.Node) -> None:
        name = str(node.target)
        self._quantized[node] = _Input(self._batches, name)
        ours = self._float_batches
        if self._twice:
            self._float[node] = self._quantized[node] if ours is None else _Input(ours, name)

    def _pass(self, node: fx.Node, name: str) -> None:
        """A node that nothing is done to."""
        module = module_of(self._graph, node)
        if not self._twice:
            self._quantized[node] = self._computed(node, self._quantized, module)
            return
        self._float[node] = self._computed(node, self._float, self._float_layers.get(name, module))
        changed = name in self._float_layers or any(
            self._quantized[source] is not self._float[source] for source in node.all_input_nodes
        )
        self._quantized[node] = (
            self._computed(node, self._quantized, module) if changed else self._float[node]
        )

    def _quantize(self, node: fx.Node, name: str, visit: Visit) -> None:
        (source,) = node.all_input_nodes
        outputs = None
        if self._twice:
            module = self._graph.get_submodule(name)
            self._float[node] = self._computed(node, self._float, module)
            if name in self._called_again:
                self._float_layers[name] = copied(module)
            outputs = self._wanted(node, source)
        visit(name, Seen(self._quantized[source], outputs))
        with encoded_once(self._graph.get_submodule(name)) as module:
            self._quantized[node] = self._computed(node, self._quantized, module)
        self.to_visit.remove(name)

    def _wanted(self, node: fx.Node, source: fx.Node) -> Sequence[Tensor] | None:
        lacking = self._lacking(node)
        if lacking is not None:
            return _Sum(self._float[node], lacking)
        same = self._quantized[source] is self._float[source]
        return None if same else self._float[node]

    def _lacking(self, node: fx.Node) -> Sequence[Tensor] | None:
        other = other_summand(self._graph, node)
        found = None if other is None else other.lacking(self._float, self._quantized)
        same_shape = found is not None and found[0].shape == self._float[node][0].shape
        return found if same_shape else None

    def _computed(
        self, node: fx.Node, values: Mapping[fx.Node, Sequence[Any]], module: nn.Module | None
    ) -> Sequence[Any]:
        if node.op == "get_attr":
            return [_attribute(self._graph, str(node.target))] * len(self._batches)
        return self._keep(self._results(node, values, module))

    def _results(
        self, node: fx.Node, values: Mapping[fx.Node, Sequence[Any]], module: nn.Module | None
    ) -> Iterator[Any]:
        for index in range(len(self._batches)):
            here = {source: values[source][index] for source in node.all_input_nodes}
            args, kwargs = fx.map_arg((node.args, node.kwargs), here.__getitem__)
            yield _call(node, module, args, kwargs)

    def _forget(self, node: fx.Node) -> None:
        for source in {node, *node.all_input_nodes}:
            if source is not node:
                self._readers[source] -= 1
            if not self._readers[source]:
                self._float.pop(source, None)
                self._quantized.pop(source, None)


@final
class _Input(Sequence[Any]):
    """One input of the graph, batch by batch."""

    def __init__(self, batches: Batches, name: str) -> None:
        self._batches, self._name = batches, name

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return self._batches[index][self._name]


@final
class _Sum(Sequence[Any]):
    """The sums of two sequences of tensors, computed as they are read."""

    def __init__(self, values: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        self._values, self._others = values, others

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index] + self._others[index]


def _attribute(graph: fx.GraphModule, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(graph.get_submodule(path), name)


def _call(node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]
