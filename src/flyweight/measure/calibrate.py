"""Calibration: what values flow through the places that will be quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, fx

from flyweight.core.protocols import Task
from flyweight.data.examples import Splits
from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.histogram import Histogram
from flyweight.model import Model

CALIBRATION_BATCH = 32


def calibration_batches(
    model: Model, task: Task, splits: Splits, *, size: int | None = None
) -> list[dict[str, Tensor]]:
    """The calibration split as model inputs, in batches of `CALIBRATION_BATCH`.

    Args:
        model: With preprocessing.
        task: Says what the model is run on.
        splits: The calibration split is taken.
        size: Examples at most; None is all.

    Raises:
        InputError: The model has no preprocessing, or an example does not fit it.
    """
    if model.preprocessing is None:
        raise InputError(f"model {model.name!r} has no preprocessing: open it with flyweight.load.open")
    own = splits.calibration
    queries = task.queries(Splits(train=own, calibration=own, evaluation=own))
    count = min(len(own) if size is None else size, len(queries))
    batches = []
    for start in range(0, count, CALIBRATION_BATCH):
        chosen = queries.take(np.arange(start, min(start + CALIBRATION_BATCH, count)))
        arrays = model.preprocessing(chosen.inputs)
        batches.append({name: torch.from_numpy(value) for name, value in arrays.items()})
    return batches


@final
class _Observer(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, watch: Callable[[fx.Node, Tensor], None]) -> None:
        super().__init__(graph)
        self._watch = watch

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self._watch(n, value)
        return value


@torch.no_grad()
def observe(
    graph: fx.GraphModule, batches: Sequence[Mapping[str, Tensor]], nodes: Sequence[fx.Node]
) -> dict[fx.Node, Histogram]:
    """Histograms of what the nodes put out while the graph runs the batches.

    Raises:
        ValueError: There is no batch.
        UnsupportedError: An activation is not finite.
    """
    if not batches:
        raise ValueError("calibration needs at least one batch")
    histograms = {node: Histogram() for node in nodes}
    overflowed: list[fx.Node] = []  # raised in run(), an error would get the tracer's own lines

    def watch(node: fx.Node, value: Tensor) -> None:
        if node in histograms:
            if bool(torch.isfinite(value).all()):
                histograms[node].add(value)
            else:
                overflowed.append(node)

    observer = _Observer(graph, watch)
    for batch in batches:
        observer.run(*in_graph_order(graph, batch))
        if overflowed:
            raise UnsupportedError(
                f"the values {_place(overflowed[0])} are NaN or infinite on calibration data, so they "
                "have no range: leave the layers around out of the plan, or use weight_only, which needs none"
            )
    return histograms


@torch.no_grad()
def watch_values(
    graph: fx.GraphModule,
    batches: Sequence[Mapping[str, Tensor]],
    watch: Callable[[fx.Node, Tensor], None],
) -> None:
    """Run the batches and show each node's value as it is computed."""
    observer = _Observer(graph, watch)
    for batch in batches:
        observer.run(*in_graph_order(graph, batch))


def _place(node: fx.Node) -> str:
    """Where a node is, by the layer it calls, or the layer before it."""
    before = node
    while before.op != "call_module" and before.all_input_nodes:
        before = before.all_input_nodes[0]
    if before.op != "call_module":
        return f"of {node.name!r}"
    return (
        f"of layer {str(before.target)!r}" if before is node else f"of {node.name!r} after {before.target!r}"
    )


def in_graph_order(graph: fx.GraphModule, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """A batch as positional arguments of `torch.fx.Interpreter.run`."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    return [batch[name] for name in names]
