"""Sizes, times and fractions as people write them, to numbers: ``"25MB"``, ``"15ms"``, ``"0.5%"``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

BYTE_UNITS: Mapping[str, float] = {
    "B": 1.0,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}
TIME_UNITS: Mapping[str, float] = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
ENERGY_UNITS: Mapping[str, float] = {"nJ": 1e-9, "uJ": 1e-6, "µJ": 1e-6, "mJ": 1e-3, "J": 1.0}

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D*?)\s*")


def parse_bytes(text: str | int | float) -> float:
    """Bytes above 0 from ``"25MB"``, ``"300 kB"`` or ``"1.5MiB"``; case is ignored.

    Raises:
        ValueError: It is no size, has no unit, or not above 0.
    """
    return _positive(text, BYTE_UNITS, "a size", "25MB, 300kB or 1.5MiB", "MB")


def parse_seconds(text: str | int | float) -> float:
    """Seconds above 0 from ``"15ms"`` or ``"200us"``.

    Raises:
        ValueError: It is no time, has no unit, or not above 0.
    """
    return _positive(text, TIME_UNITS, "a time", "15ms, 200us or 1s", "ms")


def parse_joules(text: str | int | float) -> float:
    """Joules above 0 from ``"5mJ"``.

    Raises:
        ValueError: It is no energy, has no unit, or not above 0.
    """
    return _positive(text, ENERGY_UNITS, "an energy", "5mJ or 50uJ", "mJ")


def parse_drop(text: str | int | float) -> float:
    """A drop of a metric in its own unit, from 0: ``"0.5%"`` and ``"0.005"`` are both half a point.

    Raises:
        ValueError: It is no number or percentage, or is negative.
    """
    value = _scaled(text, {"%": 0.01, "": 1.0}, "a drop", "0.5% or 0.005")
    if value < 0:
        raise ValueError(f"a drop must be at least 0, got {text}; write 0.5% or 0.005")
    return value


def parse_factor(text: str | int | float) -> float:
    """A finite number, or a fraction as ``"1/255"``.

    Raises:
        ValueError: It is neither.
    """
    above, slash, below = str(text).partition("/")
    try:
        factor = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        factor = math.nan
    if isinstance(text, bool) or not math.isfinite(factor):
        raise ValueError(f"{text!r} is no factor; write for example 1/255 or 0.5")
    return factor


def _positive(
    text: str | int | float, units: Mapping[str, float], what: str, examples: str, usual: str
) -> float:
    """A number above 0 with one of the units."""
    value = _scaled(text, {**units, "": 1.0}, what, examples)
    if value <= 0:
        raise ValueError(f"{what} must be above 0, got {text}; write for example {examples}")
    if str(text).strip()[-1] in "0123456789.":
        base = next(unit for unit, scale in units.items() if scale == 1)
        number = f"{text:.12g}" if isinstance(text, float) else str(text).strip()
        raise ValueError(f"{number} has no unit; give one: {number}{usual} or {number}{base}")
    return value


def _scaled(text: str | int | float, units: Mapping[str, float], what: str, examples: str) -> float:
    if isinstance(text, bool):
        raise ValueError(f"{text} is not {what}; write for example {examples}")
    match = _NUMBER.fullmatch(str(text))
    scales = {name.casefold(): scale for name, scale in units.items()}
    if match is None or match[2].casefold() not in scales:
        known = ", ".join(filter(None, units))
        raise ValueError(f"{text!r} is not {what}; write for example {examples} (units: {known})")
    value = float(match[1]) * scales[match[2].casefold()]
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is too large for {what}; write for example {examples}")
    return value
