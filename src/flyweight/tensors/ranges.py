"""Range setting: from values to the interval that the integer codes will cover.

Source: Krishnamoorthi 2018, arXiv:1806.08342, section 2; the error-minimising range follows Nagel et al.
2021, arXiv:2106.08295, section 3.1; for the entropy see `flyweight.tensors.entropy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from flyweight.tensors.entropy import divergence, histograms

RangeMethod = Literal["minmax", "percentile", "entropy", "mse", "adaptive"]
RANGE_METHODS: tuple[str, ...] = get_args(RangeMethod)
# Candidate ranges from 100 % of min-max down; finer changed no code in 1 of 1000 weights.
SHRINK = 0.02
SHRINK_STEPS = 40  # to 22 %
SHRINK_STEPS_OF_FEW_CODES = 49  # to 4 %: below 8 bits the best range of many values may be that narrow
DEFAULT_PERCENTILE = 0.9999
ENTROPY_BINS = 2048  # of the source
LEAST_GAIN_NATS = 1e-9  # below, divergences differ by rounding
CHUNK = 1024  # histograms at a time


@final
@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Of what each weight is multiplied by: the squared error of their sum of products follows.

    Attributes:
        energy: Mean squares, at least 0.
        mean: None is 0. Inputs behind a relu are seldom near it, and errors that all point one way add up.
    """

    energy: Float[Tensor, "_ size"]
    mean: Float[Tensor, "_ size"] | None = None

    def output_error(self, difference: Float[Tensor, "count size"]) -> Float[Tensor, " count"]:
        """Mean squared error of the output, float64, as far as inputs vary independently of each other."""
        squared = difference.double().square()
        if self.mean is None:
            return (squared * self.energy).sum(1)
        mean = self.mean.double()
        spread = (self.energy - mean.square()).clamp_min(0)
        return (squared * spread).sum(1) + (difference * mean).sum(1).square()


_Range = tuple[Float[Tensor, " count"], Float[Tensor, " count"]]


@final
@dataclass(frozen=True)
class Grid:
    """The integers an affine code may take.

    Attributes:
        bits: 2..8 or 16.
        symmetric: Zero maps to code 0, and the range is the same on both sides; the lowest code is then
            unused.
    """

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 8 or self.bits == 16):
            raise ValueError(f"bits must be in 2..8 or 16, got {self.bits}")

    @property
    def lowest(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) + int(self.symmetric)

    @property
    def highest(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1

    def scale_and_zero_point(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Scale (> 0) and zero point (whole, within the codes) that cover [low, high] and hold 0 exactly."""
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        tiny = torch.finfo(torch.float32).tiny
        if self.symmetric:
            scale = (torch.maximum(-low, high) / self.highest).clamp_min(tiny)
            return scale, torch.zeros_like(scale)
        steps = self.highest - self.lowest
        scale = (high / steps - low / steps).clamp_min(tiny)  # two divisions: high - low may overflow
        zero_point = (self.lowest - low / scale).round().clamp(self.lowest, self.highest)
        return scale, zero_point

    def quantize(
        self, values: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor
    ) -> Float[Tensor, "*shape"]:
        """Codes as whole floats, ties to even."""
        return ((values / scale).round() + zero_point).clamp(self.lowest, self.highest)

    def whole(self, steps: Tensor) -> Tensor:
        """Steps rounded in place."""
        return steps.round_()


def shrink_ratios(bits: int) -> tuple[float, ...]:
    """The fractions of the min-max range that are tried, 1 first."""
    steps = SHRINK_STEPS if bits >= 8 else SHRINK_STEPS_OF_FEW_CODES
    return tuple(1.0 - step * SHRINK for step in range(steps))


def range_of(
    groups: Float[Tensor, "count size"],
    grid: Grid,
    method: RangeMethod,
    *,
    inputs: InputStatistics | None = None,
) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """(low, high) of each group of values.

    Args:
        groups: One group a row; ranges are set for each by itself.
        grid: What the values will be rounded to.
        method: ``minmax`` covers all; ``percentile`` leaves out one value in 10 000 on either side; ``mse``
            shrinks the min-max range to where the squared rounding error is least; ``entropy`` to where the
            distribution changes least, where there are enough values to speak of one; ``adaptive`` takes the
            range of least squared error among those of all the others, and of those that shrink on one side.
        inputs: For ``adaptive``, of what each value is multiplied by, (count or 1, size): the error is then
            that of the layer's output. None weighs all values alike.
    """
    low, high = groups.amin(1), groups.amax(1)
    if method == "percentile":
        return _percentile(groups, low, high)
    if method == "entropy":
        return _least_divergence(groups, grid, low, high)
    if method == "mse":
        return _least_error(groups, grid, _shrunk(grid, low, high))
    if method == "adaptive":
        return _adaptive(groups, grid, low, high, inputs)
    return low, high


def _percentile(
    groups: Float[Tensor, "count size"], low: Float[Tensor, " count"], high: Float[Tensor, " count"]
) -> _Range:
    size = groups.shape[1]
    tail = max(1, round(size * (1 - DEFAULT_PERCENTILE)))
    if size * (1 - DEFAULT_PERCENTILE) < 0.5:  # too few values to leave one out
        return low, high
    return groups.kthvalue(tail, 1).values, groups.kthvalue(size - tail + 1, 1).values


def _shrunk(grid: Grid, low: Float[Tensor, " count"], high: Float[Tensor, " count"]) -> Iterator[_Range]:
    for ratio in shrink_ratios(grid.bits):
        yield low * ratio, high * ratio


def _adaptive(
    groups: Float[Tensor, "count size"],
    grid: Grid,
    low: Float[Tensor, " count"],
    high: Float[Tensor, " count"],
    inputs: InputStatistics | None,
) -> _Range:
    others = (_percentile(groups, low, high), _least_divergence(groups, grid, low, high))
    best = _least_error(groups, grid, (*_shrunk(grid, low, high), *others), inputs)
    if grid.symmetric:
        return best
    lower, upper = best
    ratios = shrink_ratios(grid.bits)
    lower, upper = _least_error(groups, grid, (best, *((lower, high * r) for r in ratios)), inputs)
    return _least_error(groups, grid, ((lower, upper), *((low * r, upper) for r in ratios)), inputs)


def _least_error(
    groups: Float[Tensor, "count size"],
    grid: Grid,
    candidates: Iterable[_Range],
    inputs: InputStatistics | None = None,
) -> _Range:
    """Of the candidates, the first that no other has a smaller squared error than, for each group."""
    best = best_low = best_high = None
    for low, high in candidates:
        scale, zero_point = grid.scale_and_zero_point(low, high)
        codes = grid.quantize(groups, scale[:, None], zero_point[:, None])
        off = (codes - zero_point[:, None]) * scale[:, None] - groups
        squared = off.double().square().sum(1) if inputs is None else inputs.output_error(off)
        error = squared.float()
        if best is None or best_low is None or best_high is None:
            best, best_low, best_high = error, low, high
            continue
        better = error < best
        best = torch.where(better, error, best)
        best_low, best_high = torch.where(better, low, best_low), torch.where(better, high, best_high)
    if best_low is None or best_high is None:
        raise ValueError("there is no candidate range")
    return best_low, best_high


def _least_divergence(
    groups: Float[Tensor, "count size"],
    grid: Grid,
    low: Float[Tensor, " count"],
    high: Float[Tensor, " count"],
) -> _Range:
    if groups.shape[1] < ENTROPY_BINS:  # too few values to fill a histogram
        return low, high
    lower, upper = low.clone(), high.clone()
    for start in range(0, len(groups), CHUNK):
        part = slice(start, start + CHUNK)
        counts, centres = histograms(groups[part], low[part], high[part], bins=ENTROPY_BINS)
        lower[part], upper[part] = least_divergent(counts, centres, grid, low[part], high[part])
    return lower, upper


def least_divergent(
    counts: Float[Tensor, "count bins"],
    centres: Float[Tensor, "count bins"],
    grid: Grid,
    low: Float[Tensor, " count"],
    high: Float[Tensor, " count"],
) -> tuple[Float[Tensor, " count"], Float[Tensor, " count"]]:
    """(low, high), shrunk to where rounding to the grid changes the distribution least.

    Args:
        counts: Of the values in each bin, float64.
        centres: Of the bins, float64, ascending.
        grid: What the values will be rounded to.
        low: The least value.
        high: The largest.
    """
    lower, upper = low.clone(), high.clone()
    best = torch.full_like(low, torch.inf, dtype=torch.float64)
    for narrow_low, narrow_high in _shrunk(grid, low, high):
        scale, zero_point = grid.scale_and_zero_point(narrow_low, narrow_high)
        codes = (centres / scale[:, None]).round() + (zero_point - grid.lowest)[:, None]
        levels = grid.highest - grid.lowest + 1
        lost = divergence(counts, codes.clamp(-1, levels).long(), levels)
        better = lost < best - LEAST_GAIN_NATS
        best = torch.where(better, lost, best)
        lower, upper = torch.where(better, narrow_low, lower), torch.where(better, narrow_high, upper)
    return lower, upper
