"""Rounding errors of a weight as a histogram, and the simple distribution that they follow best.

Rounding to nearest leaves errors spread evenly over half a step to either side where steps are small beside
the weights; errors that other weights make up for, or sums of several, are rather triangular or Gaussian.

Source: Widrow and Kollar 2008, "Quantization Noise", chapter 4 (when rounding errors are uniform).
Differs: each distribution has the errors' mean and variance, so that only shapes are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from flyweight.core.analysis import ErrorHistogram, Fit
from flyweight.tensors.affine import AffineWeight, over_columns
from flyweight.tensors.encoded import EncodedWeight

BINS = 41  # odd: an error of 0 is in the middle of one
SAMPLES = 100_000  # drawn where there are more: the distance is then known to half a percent
SHOWN = 0.999  # of the errors lie within the bins

# distribution function of (error - centre) / spread, and the spread where the standard deviation is 1
_SHAPES: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "uniform": (lambda x: ((x + 1) / 2).clamp(0, 1), 3**0.5),
    "triangular": (lambda x: 0.5 + x.clamp(-1, 1) * (1 - x.clamp(-1, 1).abs() / 2), 6**0.5),
    "gaussian": (lambda x: torch.special.ndtr(x), 1.0),
}


def error_histogram(weight: Tensor, encoding: EncodedWeight) -> ErrorHistogram | None:
    """Errors of the weights that are kept, in steps of their codes where these are even.

    None where there is no error, or one that is not finite.

    Args:
        weight: What was encoded, of the decoded weight's shape.
        encoding: As it is stored.
    """
    errors = (encoding.decode().double() - weight.double()).reshape(len(weight), -1)
    unit = "weight"
    if isinstance(encoding, AffineWeight):
        errors = errors / over_columns(encoding.scale.double(), encoding.form, errors.shape[1])
        unit = "steps"
    kept = errors.flatten() if encoding.mask is None else errors[encoding.mask.reshape(errors.shape)]
    if not kept.numel() or not bool(kept.isfinite().all()) or not float(kept.abs().max()) > 0:
        return None
    sample = _sample(kept)
    bound = float(sample.abs().sort().values[int(SHOWN * (len(sample) - 1))]) or float(kept.abs().max())
    counts = torch.histc(kept, BINS, -bound, bound).long()
    return ErrorHistogram(
        unit=unit,
        bound=bound,
        counts=tuple(counts.tolist()),
        outside=kept.numel() - int(counts.sum()),
        fits=fits(sample, centre=float(kept.mean()), deviation=float(kept.std(unbiased=False))),
    )


def fits(sample: Float[Tensor, " count"], *, centre: float, deviation: float) -> tuple[Fit, ...]:
    """One distribution of each shape, the one closest to the sample first; none without a deviation."""
    if not deviation > 0:
        return ()
    values = sample.sort().values
    found = []
    for shape, (distribution, spread) in _SHAPES.items():
        at = distribution((values - centre) / (spread * deviation))
        fit = Fit(shape=shape, centre=centre, spread=spread * deviation, distance=_distance(at))
        found.append(fit)
    return tuple(sorted(found, key=lambda fit: fit.distance))


def _distance(at: Float[Tensor, " count"]) -> float:
    """Kolmogorov-Smirnov distance of a sorted sample from a distribution function, given its values there."""
    steps = torch.arange(len(at) + 1, dtype=at.dtype) / len(at)
    return float(torch.maximum(steps[1:] - at, at - steps[:-1]).max())


def _sample(values: Float[Tensor, " count"]) -> Float[Tensor, " _"]:
    """`SAMPLES` values at most; always the same."""
    if len(values) <= SAMPLES:
        return values
    generator = torch.Generator().manual_seed(0)
    return values[torch.randint(len(values), (SAMPLES,), generator=generator)]
