"""By what the channels of an input are divided, and columns multiplied, so that rounding does less harm.

Source: Xiao et al. 2022, arXiv:2211.10438, equation 4 (`smoothquant`); Lin et al. 2023, arXiv:2306.00978,
section 3.2 and equation 4 (`awq`).
Differs: the error that is minimised is that of each layer's output, from second moments of its input, and not
all exponents of the source's grid are tried; factors are kept within `LARGEST_FACTOR` of the middle, as a
channel that calibration never saw must not lose its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from flyweight.channels.sites import Seen, Site
from flyweight.tensors.affine import AffineForm, encode_affine

STEPS = 20  # of the source: exponents 0, 1/20, ... 1
WIDTHS = (4, 2, 1)  # every fourth is tried, then those beside the best
LARGEST_FACTOR = 64.0


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """Factors, and what they gain.

    Attributes:
        factors: What inputs are divided by.
        error: Squared output error with rounded weights and these factors.
        plain_error: Without.
    """

    factors: Float[Tensor, " channels"]
    error: float
    plain_error: float


def smoothquant(
    site: Site, seen: Seen, weights: Mapping[str, Tensor], *, alpha: float
) -> Float[Tensor, " channels"]:
    """``max|x|**alpha / max|w|**(1 - alpha)``; for channels that are never used the middle one.

    A smaller one would scale such a channel up beside the others, and it may be large on other data.
    """
    weight = torch.zeros(site.channels, dtype=torch.float64)
    for name, channel in site.reads.items():
        weight.scatter_reduce_(0, channel, weights[name].double().abs().amax(0), "amax")
    used = (seen.largest > 0) & (weight > 0)
    if not bool(used.any()):
        return torch.ones(site.channels)
    factors = seen.largest**alpha / weight ** (1 - alpha)
    middle = factors[used].median()
    bounded = factors.clamp(middle / LARGEST_FACTOR, middle * LARGEST_FACTOR)
    return torch.where(used, bounded, middle).float()


def awq(
    site: Site,
    seen: Seen,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor | None],
    form: AffineForm,
) -> Choice:
    """``mean|x|**a``, the exponent that of the least output error; 0, which changes nothing, is tried too."""
    ones = torch.ones(site.channels)
    tried = {0: (output_error(site, seen, weights, masks, form, ones), ones)}
    for width in WIDTHS:
        middle = min(tried, key=lambda step: tried[step][0])
        near = range(0, STEPS + 1, width) if width == WIDTHS[0] else (middle - width, middle + width)
        for step in near:
            if step not in tried and 0 <= step <= STEPS:
                factors = _powers(seen.mean, step / STEPS)
                tried[step] = output_error(site, seen, weights, masks, form, factors), factors
    error, factors = min(tried.values(), key=lambda found: found[0])
    return Choice(factors, error, tried[0][0])


def _powers(mean: Float[Tensor, " channels"], exponent: float) -> Float[Tensor, " channels"]:
    """Powers of the means, 1 in the middle of the largest and the smallest, and where nothing was seen."""
    seen = mean > 0
    if not bool(seen.any()):
        return torch.ones_like(mean).float()
    powers = mean.clamp_min(torch.finfo(torch.float32).tiny) ** exponent
    middle = (powers[seen].amax().log() + powers[seen].amin().log()).mul(0.5).exp()
    return torch.where(seen, (powers / middle).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR), 1.0).float()


def output_error(
    site: Site,
    seen: Seen,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor | None],
    form: AffineForm,
    factors: Float[Tensor, " channels"],
) -> float:
    """Squared error of all outputs with weights rounded after they took the factors."""
    total = 0.0
    for name, weight in weights.items():
        own = site.over_columns(name, factors)
        rounded = encode_affine(weight * own, form, masks[name]).decode() / own
        difference = rounded - weight
        total += float(((difference @ seen.products[name]).double() * difference.double()).sum())
    return total
