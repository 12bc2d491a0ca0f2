"""Numbers and names as people read them: decimal units, ratios, points, intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from flyweight.core.analysis import RELATIVE
from flyweight.core.report import Estimate, Report

_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_JOULES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_TIMES = "\N{MULTIPLICATION SIGN}"
_ABOUT_THE_SAME = 0.005  # relative; a ratio shown with two decimals would read 1.00


def bytes_text(nbytes: int | float) -> str:
    """Three digits and a decimal unit: ``"44.7 MB"``."""
    return _scaled(nbytes, _BYTES)


def time_text(seconds: int | float) -> str:
    """Three digits and a unit: ``"853 µs"``."""
    return _scaled(seconds, _SECONDS)


def energy_text(joules: int | float) -> str:
    """Three digits and a unit: ``"12.0 mJ"``."""
    return _scaled(joules, _JOULES)


def count_text(count: int | float) -> str:
    """Three digits and a decimal prefix: ``"1.81 G"``."""
    return _scaled(count, _COUNTS)


def percent_text(fraction: int | float, decimals: int = 2) -> str:
    """``0.9295`` as ``"92.95 %"``."""
    return f"{100 * fraction:.{decimals}f} %"


def damage_text(damage: float | None, unit: str) -> str:
    """Two digits of what a layer does to the output: ``"3.2 %"`` of it, or ``"0.0038"`` nats."""
    if damage is None:
        return "\N{EN DASH}"
    return f"{_two_digits(100 * damage)} %" if unit == RELATIVE else _two_digits(damage)


def times_text(ratio: float) -> str:
    """``"3.73×"``, ``"12.4×"``."""
    return f"{ratio:.{2 if ratio < 9.995 else 1}f}{_TIMES}"


def ratio_text(before: int | float, after: int | float, *, less: str, more: str) -> str:
    """``"3.73× smaller"`` with the word ``less``, ``"1.20× larger"`` with ``more``, or ``""``."""
    if before <= 0 or after <= 0:
        return "same" if before == after else ""
    if before == after:
        return "same"
    if abs(before / after - 1) < _ABOUT_THE_SAME:
        return "about the same"
    return (
        f"{times_text(before / after)} {less}" if before > after else f"{times_text(after / before)} {more}"
    )


def speedup_text(speedup: Estimate) -> str:
    """``"1.92× faster [1.84, 2.01]"``; below 1 the reciprocal, ``"1.20× slower [1.10, 1.31]"``."""
    value, low, high, word = speedup.value, speedup.low, speedup.high, "faster"
    if 0 < value < 1 and low > 0:
        value, low, high, word = 1 / value, 1 / high, 1 / low, "slower"
    return f"{times_text(value)} {word} [{low:.2f}, {high:.2f}]"


def p_text(p_value: float) -> str:
    """``"p = 0.18"``, ``"p < 0.001"``."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def printable(text: str) -> str:
    """``text`` on one line, without characters that steer a terminal or cannot be encoded."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def shortened(text: str, length: int) -> str:
    """At most ``length`` characters; the middle gives way, since layer names differ at their ends."""
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 3
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


@final
@dataclass(frozen=True)
class MetricWording:
    """How the values of one metric are written.

    Attributes:
        percent: Quality as a percentage: accuracies.
        points: Differences in points, hundredths of the metric: metrics in 0..1.
    """

    percent: bool
    points: bool

    def quality(self, value: float) -> str:
        """``"92.95 %"`` or ``"0.8672"``."""
        return percent_text(value) if self.percent else _plain_text(value)

    def interval(self, estimate: Estimate) -> str:
        """``"[92.44, 93.45]"`` or ``"[0.8501, 0.8832]"``, in the unit of `quality`."""
        low, high = (
            f"{100 * x:.2f}" if self.percent else _plain_text(x) for x in (estimate.low, estimate.high)
        )
        return f"[{low}, {high}]"

    def drop(self, drop: float) -> str:
        """``"0.07 points"``, negative for a gain; metrics beyond 0..1 in their own unit."""
        return f"{self._amount(drop)} points" if self.points else self._amount(drop)

    def drop_interval(self, drop: Estimate) -> str:
        """``"[-0.02, 0.16]"``, in the unit of `drop`."""
        return f"[{self._amount(drop.low)}, {self._amount(drop.high)}]"

    def change(self, drop: float) -> str:
        """``"0.07 points lower"``, ``"0.05 points higher"`` or ``"same"``."""
        amount = self._amount(abs(drop))
        if float(amount) == 0:
            return "same" if drop == 0 else "about the same"
        return f"{self.drop(abs(drop))} {'lower' if drop > 0 else 'higher'}"

    def _amount(self, drop: float) -> str:
        text = f"{100 * drop:.2f}" if self.points else _plain_text(drop)
        return text.lstrip("-") if float(text) == 0 else text


def metric_wording(report: Report) -> MetricWording:
    """Percent for accuracies and points for whatever was measured within 0..1."""
    estimates = (report.original.quality, report.compressed.quality)
    points = all(0 <= value <= 1 for e in estimates for value in (e.value, e.low, e.high))
    return MetricWording(percent=points and "accuracy" in report.metric.lower(), points=points)


def _two_digits(value: float) -> str:
    """``"0.0038"``, ``"6.5e-06"``, ``"120"``."""
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.2g}"


def _plain_text(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def _scaled(value: int | float, units: tuple[tuple[float, str], ...]) -> str:
    """``value`` in the largest unit in which it rounds to at least 1; zero in the plain unit."""
    fitting = (u for u in units if abs(value) >= 0.9995 * u[0] or (value == 0 and u[0] == 1))
    scale, unit = next(fitting, units[-1])
    amount = value / scale
    whole = scale == 1 and amount == round(amount)
    decimals = 0 if whole or abs(amount) >= 99.95 else 1 if abs(amount) >= 9.995 else 2
    return f"{amount:.{decimals}f} {unit}".rstrip()
