"""Ranges of activations searched one by one for the least output error of the layers that read them.

The candidates are the ranges of all methods, what shrinks min-max on both sides, and then what differs from
the best of these on one side. They are compared on `SEARCH_EXAMPLES`; what is chosen is compared with min-max
on all calibration data, and is never worse there. Values that no layer reads, but additions or pools, get the
range of least squared error.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (the range by the error it makes).
Differs: the error is that of the readers' outputs, each layer by itself, not that of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, fx, nn

from flyweight.measure.activation_ranges import (
    activation_range,
    candidate_ranges,
    code_parameters,
    one_sided,
)
from flyweight.measure.calibrate import watch_values
from flyweight.measure.graph import module_of
from flyweight.measure.histogram import Histogram
from flyweight.techniques._bias_correction import joined
from flyweight.techniques._placement import Placement, layer_called
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.encoded import EncodedLayer, Layer, compute

SEARCH_EXAMPLES = 16
SEARCH_VECTORS = 4096  # of what a linear layer reads, spread over the examples

Key = tuple[fx.Node, int]  # value, bits of its codes
Grids = Mapping[Key, tuple[float, int]]  # scale, zero point


@torch.no_grad()
def adaptive_grids(
    graph: fx.GraphModule,
    batches: Sequence[Mapping[str, Tensor]],
    placement: Placement,
    histograms: Mapping[fx.Node, Histogram],
) -> Grids:
    """Scale and zero point of each value that is placed.

    Args:
        graph: Before anything is rounded.
        batches: Calibration data, at least one batch.
        placement: What will be rounded.
        histograms: Of the values of ``placement.own``.
    """
    readers = {key: _readers(graph, placement, key) for key in placement.grids()}
    layers = {call: reader_of(graph, call) for calls in readers.values() for call in calls}
    read = _examined(graph, batches, layers)
    found: dict[Key, tuple[float, int]] = {}
    for key, calls in readers.items():
        node, bits = key
        if calls:
            error = _error_on([(layers[call], read[call]) for call in calls], bits)
            found[key] = _searched(histograms[node], bits, error)
        else:
            found[key] = code_parameters(*activation_range(histograms[node], "adaptive", bits), bits)
    plain = {
        (node, bits): code_parameters(*activation_range(histograms[node], "minmax", bits), bits)
        for node, bits in found
    }
    gained = _gains(graph, batches, _by_value(readers, layers), (plain, found))
    return {key: grid if gained.get(key, 0.0) >= 0 else plain[key] for key, grid in found.items()}


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """A layer, and the weight that it multiplies what it reads with, decoded once."""

    layer: Layer
    weight: Tensor

    def error(self, x: Tensor, quantizer: StaticQuantizer) -> float:
        """Squared error of the output that rounding the input makes."""
        return float(compute(self.layer, quantizer(x) - x, self.weight, None).double().square().sum())


def reader_of(graph: fx.GraphModule, call: fx.Node) -> Reader:
    """What a call of a linear or convolutional layer computes with."""
    module = cast("Layer | EncodedLayer", module_of(graph, call))
    return Reader(module.layer if isinstance(module, EncodedLayer) else module, module.weight)


def _readers(graph: fx.GraphModule, placement: Placement, key: Key) -> list[fx.Node]:
    """The calls of layers that multiply the value of ``key``, or what only moved it."""
    node, bits = key
    values = [node, *(moved for moved, source in placement.shared.items() if source is node)]
    calls = [call for value in values for call in placement.readers(value).get(bits, [])]
    return [
        call for call in calls if isinstance(layer_called(graph, call), nn.Linear | nn.Conv1d | nn.Conv2d)
    ]


def _examined(
    graph: fx.GraphModule, batches: Sequence[Mapping[str, Tensor]], layers: Mapping[fx.Node, Reader]
) -> dict[fx.Node, Tensor]:
    """What the calls read on some examples."""
    every = joined(batches)
    step = max(1, len(next(iter(every.values()))) // SEARCH_EXAMPLES)
    examples = {name: value[::step][:SEARCH_EXAMPLES] for name, value in every.items()}
    wanted: dict[fx.Node, list[fx.Node]] = {}
    for call in layers:
        wanted.setdefault(call.all_input_nodes[0], []).append(call)
    found: dict[fx.Node, Tensor] = {}

    def keep(node: fx.Node, value: Tensor) -> None:
        for call in wanted.get(node, []):
            found[call] = value
            if isinstance(layers[call].layer, nn.Linear):
                vectors = value.reshape(-1, value.shape[-1])
                found[call] = vectors[:: max(1, len(vectors) // SEARCH_VECTORS)]

    watch_values(graph, [examples], keep)
    return found


def _error_on(read: Sequence[tuple[Reader, Tensor]], bits: int) -> Callable[[tuple[float, int]], float]:
    def error(grid: tuple[float, int]) -> float:
        quantizer = StaticQuantizer(*grid, bits)
        return sum(layer.error(x, quantizer) for layer, x in read)

    return error


def _searched(
    histogram: Histogram, bits: int, error: Callable[[tuple[float, int]], float]
) -> tuple[float, int]:
    """The grid of least error, the first of equals; min-max comes first."""
    errors: dict[tuple[float, int], float] = {}
    best, chosen = float("inf"), (histogram.low, histogram.high)

    def compare(ranges: Iterable[tuple[float, float]]) -> None:
        nonlocal best, chosen
        for low, high in ranges:
            grid = code_parameters(low, high, bits)
            if grid not in errors:
                errors[grid] = error(grid)
                if errors[grid] < best:
                    best, chosen = errors[grid], (low, high)

    compare(candidate_ranges(histogram, bits))
    compare(list(one_sided(histogram, chosen, bits)))
    return code_parameters(min(chosen[0], 0.0), max(chosen[1], 0.0), bits)


def _by_value(
    readers: Mapping[Key, Sequence[fx.Node]], layers: Mapping[fx.Node, Reader]
) -> dict[fx.Node, list[tuple[Key, Reader]]]:
    """What is computed from each value that a layer reads."""
    found: dict[fx.Node, list[tuple[Key, Reader]]] = {}
    for key, calls in readers.items():
        for call in calls:
            found.setdefault(call.all_input_nodes[0], []).append((key, layers[call]))
    return found


def _gains(
    graph: fx.GraphModule,
    batches: Sequence[Mapping[str, Tensor]],
    computed: Mapping[fx.Node, Sequence[tuple[Key, Reader]]],
    grids: tuple[Grids, Grids],
) -> dict[Key, float]:
    """By how much the second grids' squared output error is below the first ones', over all batches."""
    gained: dict[Key, float] = {}

    def compare(node: fx.Node, value: Tensor) -> None:
        for key, reader in computed.get(node, ()):
            before, after = (reader.error(value, StaticQuantizer(*grid[key], key[1])) for grid in grids)
            gained[key] = gained.get(key, 0.0) + before - after

    watch_values(graph, batches, compare)
    return gained
