"""What a model costs on a device, and the budget it has to fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources of one model on one device; one forward pass at batch 1 where time is meant.

    Attributes:
        storage_bytes: All files the device needs to run it.
        ram_bytes: Peak of weights plus live activations.
        latency_s: Median of one forward pass.
        energy_j: One forward pass.
    """

    storage_bytes: float = 0.0
    ram_bytes: float = 0.0
    latency_s: float = 0.0
    energy_j: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds; None is unbounded.

    Attributes:
        storage_bytes: See `Cost`.
        ram_bytes: See `Cost`.
        latency_s: See `Cost`.
        energy_j: See `Cost`.
        quality_drop: Largest allowed drop, absolute, in the metric's own unit (0.005 is half a point of
            accuracy).

    Raises:
        ValueError: A bound is not finite, or is not positive (``quality_drop`` may be 0).
    """

    storage_bytes: float | None = None
    ram_bytes: float | None = None
    latency_s: float | None = None
    energy_j: float | None = None
    quality_drop: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            bound = getattr(self, field.name)
            if bound is None:
                continue
            lowest_allowed = bound >= 0 if field.name == "quality_drop" else bound > 0
            if not (math.isfinite(bound) and lowest_allowed):
                least = "at least 0" if field.name == "quality_drop" else "above 0"
                raise ValueError(f"budget {field.name} must be finite and {least}, got {bound}")

    def excess(self, cost: Cost) -> dict[str, float]:
        """Relative overshoot of each violated bound, ``{"storage_bytes": 0.5}`` for 50 % over; {} if none."""
        over: dict[str, float] = {}
        for field in fields(cost):
            bound = getattr(self, field.name)
            if bound is not None and getattr(cost, field.name) > bound:
                over[field.name] = getattr(cost, field.name) / bound - 1.0
        return over
