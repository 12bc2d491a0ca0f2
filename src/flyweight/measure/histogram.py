"""Counts of activations in bins of a power of two, so that those of two machines merge exactly."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

MAX_BINS = 8192
MAX_INDEX = 2**24  # finer bins than float32 has values


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

    def at_most(self, bins: int) -> Histogram:
        """The same in at most so many bins."""
        coarse = Histogram()
        coarse.merge(self)
        while len(coarse.counts) > bins:
            coarse._coarsen_to(coarse.exponent + 1)
        return coarse

    def without_zeros(self) -> Tensor:
        """(bins,) counts, where the bin that zeros fall into holds no more than the next."""
        counts, zero = self.counts.clone(), -self.first
        if 0 <= zero < len(counts) - 1:
            counts[zero] = torch.minimum(counts[zero], counts[zero + 1])
        return counts

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
