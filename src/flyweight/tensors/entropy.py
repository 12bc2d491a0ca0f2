"""How much of a distribution is lost when its values are rounded to a grid: Kullback-Leibler divergence.

The distribution is a histogram. Rounded, each code holds the mass of its bins, spread evenly over those that
are not empty; what lies beyond the grid's ends is counted in the bins at its ends, but not by the codes.

Source: Migacz 2017, "8-bit Inference with TensorRT", GPU Technology Conference, slides 18-23 and 38.
Differs: both ends of the grid may clip; a bin belongs to the code that its centre is rounded to; `EMPTY_BIN`
stands for the codes of bins that only outliers fall into; zeros, which every grid holds, are left out, as
half of the values after a ReLU would else ask for a code of their own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

EMPTY_BIN = 1e-4  # counts; MXNet's smoothing in its form of the same algorithm


def divergence(
    counts: Float[Tensor, "groups bins"], codes: Int[Tensor, "groups bins"], levels: int
) -> Float[Tensor, " groups"]:
    """KL(histogram, rounded histogram) of each group, in nats; infinite where all values are clipped.

    Args:
        counts: Of the values in each bin, float64.
        codes: What the centre of each bin is rounded to, ascending; below 0, or from ``levels`` on, where the
            grid ends before it.
        levels: Number of codes.
    """
    below, above = codes < 0, codes >= levels
    inside = counts.masked_fill(below | above, 0.0)
    codes = codes.clamp(0, levels - 1)
    reference = inside + _at_the_ends(counts, below, above)
    filled = (reference > 0).double()
    empty = torch.zeros(len(counts), levels, dtype=torch.float64)
    mass = empty.scatter_add(1, codes, inside).gather(1, codes)
    sharers = empty.scatter_add(1, codes, filled).gather(1, codes).clamp_min(1.0)
    rounded = (mass / sharers).clamp_min(EMPTY_BIN)
    total = inside.sum(1, keepdim=True)
    p, q = reference / reference.sum(1, keepdim=True), rounded / total
    result = torch.where(reference > 0, p * (p / q).log(), 0.0).sum(1)
    return torch.where(total[:, 0] > 0, result, torch.inf)


def _at_the_ends(
    counts: Float[Tensor, "groups bins"], below: Tensor, above: Tensor
) -> Float[Tensor, "groups bins"]:
    """The counts below the grid in its first bin, and those above it in its last."""
    last_bin = counts.shape[1] - 1
    first = below.sum(1, keepdim=True).clamp(max=last_bin)
    last = (last_bin - above.sum(1, keepdim=True)).clamp(min=0)
    ends = torch.zeros_like(counts).scatter_add(1, first, (counts * below).sum(1, keepdim=True))
    return ends.scatter_add(1, last, (counts * above).sum(1, keepdim=True))


def histograms(
    groups: Float[Tensor, "count size"],
    low: Float[Tensor, " count"],
    high: Float[Tensor, " count"],
    *,
    bins: int,
) -> tuple[Float[Tensor, "count bins"], Float[Tensor, "count bins"]]:
    """(counts, centres of the bins), float64, of what is not 0 in each group; low <= values <= high."""
    start, end = low.double()[:, None], high.double()[:, None]
    width = ((end - start) / bins).clamp_min(torch.finfo(torch.float32).tiny / bins)
    index = ((groups.double() - start) / width).floor().clamp(0, bins - 1).long()
    counts = torch.zeros(len(groups), bins, dtype=torch.float64)
    counts.scatter_add_(1, index, (groups != 0).double())
    return counts, start + (torch.arange(bins, dtype=torch.float64) + 0.5) * width
