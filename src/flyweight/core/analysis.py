"""Where quality is lost: errors of each quantized layer, and what each does to the model's output.

All of it is measured on the PyTorch reference with calibration examples, not on the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

KL = "KL divergence, nats"
RELATIVE = "relative error"


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far values are from those of the float model.

    Attributes:
        mse: Mean of the squared difference.
        max_abs: Largest absolute difference.
        relative: Root of the squared differences' sum over that of the float values; None where these are 0.
        sqnr_db: The same as signal to quantization noise in decibels; None where nothing differs, too.
        cosine: Of the angle between both; None where one of them is 0.
    """

    mse: float
    max_abs: float
    relative: float | None
    sqnr_db: float | None
    cosine: float | None


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """Errors of one layer; None what could not be compared.

    Attributes:
        weight: Of the weight as it is stored.
        output_alone: Of the output when only this layer is quantized.
        output: Of the output when all layers before it are quantized too.
    """

    weight: Deviation | None
    output_alone: Deviation | None
    output: Deviation | None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A distribution with the mean and variance of the errors.

    Attributes:
        shape: ``"uniform"``, ``"triangular"`` (symmetric) or ``"gaussian"``.
        centre: Its mean.
        spread: Half its width; of a Gaussian, the standard deviation.
        distance: Kolmogorov-Smirnov: the largest difference between its distribution function and that of
            the errors, 0..1.
    """

    shape: str
    centre: float
    spread: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class ErrorHistogram:
    """Rounding errors of the weights of one layer.

    Attributes:
        unit: ``"steps"`` between neighbouring codes; ``"weight"`` where codes have no even step.
        bound: The bins, equally wide, reach from ``-bound`` to ``bound``.
        counts: Errors in each bin.
        outside: Errors beyond the bins.
        fits: One of each shape, the best first.
    """

    unit: str
    bound: float
    counts: tuple[int, ...]
    outside: int
    fits: tuple[Fit, ...]


@dataclass(frozen=True, kw_only=True)
class Wider:
    """The layer with its weights rounded to nearest in the next width in which that does less.

    Attributes:
        bits: That width; the highest where none does less.
        more_bytes: What its weight takes in a file beyond what it takes now.
        damage: As in `LayerLoss`; None where it was not tried.
    """

    bits: int
    more_bytes: float
    damage: float | None


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """What one quantized layer costs.

    Attributes:
        name: Qualified module name.
        bits: Of one weight as planned, without scales and tables.
        errors: Of its weight and output.
        histogram: Of the rounding errors of its weights; None where all weights are as they were.
        damage: How far the model's output moves when only this layer is quantized, in the unit of the
            `Analysis`; None where it was not tried.
        wider: One width higher; None where there is none.
    """

    name: str
    bits: float
    errors: LayerErrors
    histogram: ErrorHistogram | None
    damage: float | None
    wider: Wider | None

    @property
    def gain(self) -> float | None:
        """What one width higher takes off the damage."""
        if self.damage is None or self.wider is None or self.wider.damage is None:
            return None
        return self.damage - self.wider.damage


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Where quality is lost, layer by layer.

    Attributes:
        unit: Of every damage, both of the model's first output: `KL`, of the probabilities, mean over
            examples; or `RELATIVE`.
        examples: Calibration examples that errors were measured on.
        trial_examples: Those of them that damages were measured on.
        damage: Of all quantized layers together.
        output: Error of the model's first output, all layers quantized.
        layers: Quantized layers in execution order.
    """

    unit: str
    examples: int
    trial_examples: int
    damage: float | None
    output: Deviation | None
    layers: tuple[LayerLoss, ...]

    @property
    def ranked(self) -> tuple[LayerLoss, ...]:
        """The layers, the one that does most damage first; those not tried last."""
        return tuple(sorted(self.layers, key=lambda x: math.inf if x.damage is None else -x.damage))
