"""Calibration: what values flow through the places that will be quantized.

Statistics are histograms with power-of-two bins, so that those of two machines merge exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, fx

from flyweight.core.protocols import Task
from flyweight.data.examples import Splits
from flyweight.errors import InputError, UnsupportedError
from flyweight.model import Model
from flyweight.tensors.activation import UINT8_HIGHEST
from flyweight.tensors.ranges import DEFAULT_PERCENTILE, MSE_SHRINK, MSE_STEPS, RangeMethod

MAX_BINS = 8192
MAX_INDEX = 2**24  # finer bins than float32 has values
CALIBRATION_BATCH = 32


@final
class Histogram:
    """Counts of values in bins of width 2**exponent, bin i for [i, i + 1) * width; coarser as needed."""

    def __init__(self) -> None:
        self.exponent = -126
        self.first = 0  # index of the first bin
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.low = float("inf")
        self.high = float("-inf")

    def add(self, values: Tensor) -> None:
        """Count more values.

        Raises:
            ValueError: One of them is NaN or infinite.
        """
        if values.numel() == 0:
            return
        flat = values.detach().float().flatten()
        low, high = float(flat.min()), float(flat.max())
        if not (low > -float("inf") and high < float("inf")):
            raise ValueError("NaN or infinite activations")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._coarsen_for(self.low, self.high)
        width = 2.0**self.exponent
        first = int(torch.floor(torch.tensor(low / width, dtype=torch.float64)))
        bins = torch.floor(flat.double() / width).long() - first
        self._merge_counts(first, torch.bincount(bins).double())

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        if other.counts.numel() == 0:
            return
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._coarsen_for(self.low, self.high)
        first, counts, exponent = other.first, other.counts, other.exponent
        self._coarsen_to(max(self.exponent, exponent))
        while exponent < self.exponent:
            first, counts = _halved(first, counts)
            exponent += 1
        self._merge_counts(first, counts)

    def centres(self) -> Tensor:
        """(bins,) float64, the middle of each bin."""
        return (torch.arange(len(self.counts), dtype=torch.float64) + self.first + 0.5) * 2.0**self.exponent

    def _coarsen_for(self, low: float, high: float) -> None:
        needed = self.exponent
        largest = max(abs(low), abs(high))
        while (high - low) / 2.0**needed > MAX_BINS - 2 or largest / 2.0**needed > MAX_INDEX:
            needed += 1
        self._coarsen_to(needed)

    def _coarsen_to(self, exponent: int) -> None:
        if self.counts.numel() == 0:
            self.exponent = exponent
        while self.exponent < exponent:
            self.first, self.counts = _halved(self.first, self.counts)
            self.exponent += 1

    def _merge_counts(self, first: int, counts: Tensor) -> None:
        if self.counts.numel() == 0:
            self.first, self.counts = first, counts
            return
        start = min(self.first, first)
        end = max(self.first + len(self.counts), first + len(counts))
        total = torch.zeros(end - start, dtype=torch.float64)
        total[self.first - start : self.first - start + len(self.counts)] += self.counts
        total[first - start : first - start + len(counts)] += counts
        self.first, self.counts = start, total


def _halved(first: int, counts: Tensor) -> tuple[int, Tensor]:
    """The same counts in bins of twice the width."""
    left = first % 2
    padded = torch.nn.functional.pad(counts, (left, (left + len(counts)) % 2))
    return (first - left) // 2, padded.reshape(-1, 2).sum(1)


def activation_range(histogram: Histogram, method: RangeMethod) -> tuple[float, float]:
    """(low, high) that uint8 codes should cover; methods as in `flyweight.tensors.ranges.range_of`.

    Raises:
        ValueError: The histogram is empty.
    """
    if histogram.counts.numel() == 0:
        raise ValueError("no value was seen: calibrate with at least one example")
    low, high = histogram.low, histogram.high
    if method == "percentile":
        share = histogram.counts.cumsum(0) / histogram.counts.sum()
        centres = histogram.centres()
        tail = 1 - DEFAULT_PERCENTILE
        low = max(low, float(centres[int((share <= tail).sum())]))
        high = min(high, float(centres[int((share < 1 - tail).sum())]))
    elif method == "mse":
        low, high = _least_error(histogram)
    return min(low, 0.0), max(high, 0.0)


def uint8_parameters(low: float, high: float) -> tuple[float, int]:
    """(scale, zero_point) of uint8 codes that cover [low, high], low <= 0 <= high, with 0 exact."""
    scale = (high - low) / UINT8_HIGHEST
    if scale < torch.finfo(torch.float32).tiny:
        return 1.0, 0  # all values are 0
    return scale, min(max(round(-low / scale), 0), UINT8_HIGHEST)


def _least_error(histogram: Histogram) -> tuple[float, float]:
    centres, counts = histogram.centres(), histogram.counts
    best, chosen = float("inf"), (histogram.low, histogram.high)
    for step in range(MSE_STEPS):
        ratio = 1.0 - step * MSE_SHRINK
        low, high = min(histogram.low * ratio, 0.0), max(histogram.high * ratio, 0.0)
        scale, zero_point = uint8_parameters(low, high)
        codes = ((centres / scale).round() + zero_point).clamp(0, UINT8_HIGHEST)
        error = float((((codes - zero_point) * scale - centres).square() * counts).sum())
        if error < best:
            best, chosen = error, (low, high)
    return chosen


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
