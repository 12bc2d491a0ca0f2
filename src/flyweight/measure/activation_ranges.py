"""From the histogram of an activation to the interval that its unsigned codes will cover.

The methods, and where they come from, are those of `flyweight.tensors.ranges`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from flyweight.measure.histogram import Histogram
from flyweight.tensors.activation import highest_code
from flyweight.tensors.ranges import (
    DEFAULT_PERCENTILE,
    ENTROPY_BINS,
    Grid,
    RangeMethod,
    least_divergent,
    shrink_ratios,
)


def activation_range(histogram: Histogram, method: RangeMethod, bits: int = 8) -> tuple[float, float]:
    """(low, high) that unsigned codes should cover; methods as in `flyweight.tensors.ranges.range_of`.

    Raises:
        ValueError: The histogram is empty.
    """
    if histogram.counts.numel() == 0:
        raise ValueError("no value was seen: calibrate with at least one example")
    low, high = histogram.low, histogram.high
    if method == "percentile":
        low, high = _percentile(histogram)
    elif method == "entropy":
        low, high = _least_divergence(histogram, bits)
    elif method == "mse":
        low, high = _least_error(histogram, _shrunk(low, high, bits), bits)
    elif method == "adaptive":
        low, high = _adaptive(histogram, bits)
    return min(low, 0.0), max(high, 0.0)


def code_parameters(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """(scale, zero_point) of unsigned codes that cover [low, high], low <= 0 <= high, with 0 exact."""
    highest = highest_code(bits)
    scale = (high - low) / highest
    if scale < torch.finfo(torch.float32).tiny:
        return 1.0, 0  # all values are 0
    return scale, min(max(round(-low / scale), 0), highest)


def candidate_ranges(histogram: Histogram, bits: int) -> Iterator[tuple[float, float]]:
    """The ranges of all methods: min-max first, then what shrinks it on both sides, then the others."""
    yield from _shrunk(histogram.low, histogram.high, bits)
    yield from (activation_range(histogram, method, bits) for method in ("percentile", "entropy"))


def one_sided(histogram: Histogram, chosen: tuple[float, float], bits: int) -> Iterator[tuple[float, float]]:
    """Ranges that differ from the chosen one on one side, where there are two."""
    low, high = chosen
    if low < 0 < high:
        ratios = shrink_ratios(bits)
        yield from ((histogram.low * ratio, high) for ratio in ratios)
        yield from ((low, histogram.high * ratio) for ratio in ratios)


def _percentile(histogram: Histogram) -> tuple[float, float]:
    share = histogram.counts.cumsum(0) / histogram.counts.sum()
    centres = histogram.centres()
    tail = 1 - DEFAULT_PERCENTILE
    low = max(histogram.low, float(centres[int((share <= tail).sum())]))
    return low, min(histogram.high, float(centres[int((share < 1 - tail).sum())]))


def _shrunk(low: float, high: float, bits: int) -> Iterator[tuple[float, float]]:
    for ratio in shrink_ratios(bits):
        yield min(low * ratio, 0.0), max(high * ratio, 0.0)


def _least_divergence(histogram: Histogram, bits: int) -> tuple[float, float]:
    if histogram.counts.sum() < ENTROPY_BINS:  # too few values to fill a histogram
        return histogram.low, histogram.high
    coarse = histogram.at_most(ENTROPY_BINS)
    ends = [torch.tensor([end], dtype=torch.float32) for end in (histogram.low, histogram.high)]
    counts = coarse.without_zeros()[None]
    low, high = least_divergent(counts, coarse.centres()[None], Grid(bits, symmetric=False), *ends)
    return float(low), float(high)


def _least_error(
    histogram: Histogram, candidates: Iterable[tuple[float, float]], bits: int
) -> tuple[float, float]:
    """Of the candidates, the first that no other has a smaller squared error than."""
    centres, counts = histogram.centres(), histogram.counts
    best, chosen = float("inf"), (histogram.low, histogram.high)
    for low, high in candidates:
        scale, zero_point = code_parameters(low, high, bits)
        codes = ((centres / scale).round() + zero_point).clamp(0, highest_code(bits))
        error = float((((codes - zero_point) * scale - centres).square() * counts).sum())
        if error < best:
            best, chosen = error, (low, high)
    return chosen


def _adaptive(histogram: Histogram, bits: int) -> tuple[float, float]:
    chosen = _least_error(histogram, candidate_ranges(histogram, bits), bits)
    return _least_error(histogram, (chosen, *one_sided(histogram, chosen, bits)), bits)
