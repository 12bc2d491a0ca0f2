"""The figures of a report, each as one SVG element without outside references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flyweight.core.analysis import Deviation
from flyweight.core.report import Attempt, Estimate, Latency, LayerReport, Report, Slice
from flyweight.report.figure import INK, draw
from flyweight.report.wording import (
    MetricWording,
    bytes_text,
    metric_wording,
    printable,
    shortened,
    time_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LAYERS = 120  # more rows than this are drawn for the layers with the lowest output SQNR only
MAX_SLICES = 15

# Told apart by every kind of colour vision, and at a contrast of 3:1 or more to white and to black.
_ORIGINAL = "#8b93a1"
_COMPRESSED = "#2f7ed8"
_WORSE = "#d55e00"
_ACTIVATION = "#009e73"
_MARKERS = "os^vDPXp"

_WIDTH = (
    5.4  # inches; the page shows 518 pixels, and text stays readable when a phone shrinks that by a third
)
_NAME_LENGTH = 34
_SLICE_NAME_LENGTH = 24
_TITLE_LENGTH = 50
_VALUE_ROOM = 0.22  # of a bar axis, right of the bars, for the value
_TAIL_ROOM = (
    1.25  # the axis of times ends at so many 95th percentiles: single interruptions would squeeze the rest
)
_CURVE_POINTS = 300  # quantiles drawn of a latency distribution


def before_after(report: Report) -> str:
    """Bars of size, median latency (whisker: 95th percentile) and quality (whisker: interval), for both."""
    return draw("before-after", (_WIDTH, 3.3), partial(_paint_before_after, report=report))


def latency_distribution(report: Report) -> str:
    """Fraction of calls that took at most so long, for both; the slowest few percent are cut off."""
    return draw("latency", (_WIDTH, 2.9), partial(_paint_latency, report=report))


def layer_bars(report: Report) -> str:
    """Bits and SQNR of each layer in execution order; the worst `MAX_LAYERS` where there are more.

    The output's SQNR is shown with only this layer quantized, too, where that was analysed.

    Raises:
        ValueError: The report holds no layer.
    """
    if not report.layers:
        raise ValueError("the report holds no layer to draw")
    layers = drawn_layers(report.layers)
    alone = {x.name: x.errors.output_alone for x in report.analysis.layers} if report.analysis else {}
    paint = partial(_paint_layers, layers=layers, alone=[_sqnr_db(alone.get(x.name)) for x in layers])
    return draw("layers", (_WIDTH, 1.1 + 0.18 * len(layers)), paint)


def drawn_layers(layers: Sequence[LayerReport]) -> tuple[LayerReport, ...]:
    """The layers that `layer_bars` draws, in execution order; the worst where there are too many."""
    sqnr = [np.inf if layer.output_sqnr_db is None else layer.output_sqnr_db for layer in layers]
    return tuple(layers[i] for i in sorted(np.argsort(sqnr, kind="stable")[:MAX_LAYERS]))


def worst_slices(report: Report) -> str:
    """Drop of the `MAX_SLICES` worst slices, the worst on top.

    Raises:
        ValueError: The report holds no slice.
    """
    slices = sorted(report.comparison.slices, key=lambda s: -s.drop)[:MAX_SLICES]
    if not slices:
        raise ValueError("the report holds no slice to draw")
    paint = partial(_paint_slices, slices=slices, wording=metric_wording(report))
    return draw("slices", (_WIDTH, 0.9 + 0.25 * len(slices)), paint)


def attempts_scatter(report: Report) -> str:
    """Size against quality of every measured attempt and the original; the one chosen is filled.

    Raises:
        ValueError: No attempt was measured.
    """
    if not measured_attempts(report):
        raise ValueError("the report holds no measured attempt to draw")
    return draw("attempts", (_WIDTH, 3.2), partial(_paint_attempts, report=report))


def measured_attempts(report: Report) -> tuple[Attempt, ...]:
    """The attempts whose size and drop were both measured."""
    return tuple(a for a in report.attempts if a.storage_bytes is not None and a.quality_drop is not None)


def _paint_before_after(figure: Figure, report: Report) -> None:
    wording, before, after = metric_wording(report), report.original, report.compressed
    size, latency, quality = figure.subplots(3, 1)
    _pair(size, "Size on disk", [_exact(before.storage_bytes), _exact(after.storage_bytes)], bytes_text)
    _pair(
        latency,
        "Latency of one call, median",
        [_slow_tail(before.latency), _slow_tail(after.latency)],
        time_text,
    )
    _pair(quality, _name(report.metric, _TITLE_LENGTH), [before.quality, after.quality], wording.quality)


def _name(text: str, length: int) -> str:
    return shortened(printable(text), length)


def _exact(value: int) -> Estimate:
    return Estimate(value=float(value), low=float(value), high=float(value))


def _slow_tail(latency: Latency) -> Estimate:
    return Estimate(value=latency.p50_s, low=latency.p50_s, high=max(latency.p50_s, latency.p95_s))


def _pair(axes: Axes, title: str, pair: Sequence[Estimate], text: Callable[[float], str]) -> None:
    """Two bars from zero with their whiskers; each value stands right of what reaches furthest in its row."""
    axes.barh([0, 1], [e.value for e in pair], color=[_ORIGINAL, _COMPRESSED], height=0.72)
    for row, estimate in enumerate(pair):
        if estimate.high > estimate.low:
            axes.plot(
                [estimate.low, estimate.high], [row, row], color=INK, linewidth=1.2, marker="|", markersize=5
            )
        _beside(axes, max(0.0, estimate.value, estimate.high), row, text(estimate.value))
    low, high = min(0.0, *(e.low for e in pair)), max(0.0, *(e.high for e in pair))
    axes.set_xlim(low, high + _VALUE_ROOM * ((high - low) or 1.0))
    axes.set_yticks([0, 1], ["original", "compressed"])
    axes.invert_yaxis()
    axes.set_title(title)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)


def _beside(axes: Axes, x: float, y: int, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center")


def _paint_latency(figure: Figure, report: Report) -> None:
    axes = figure.subplots()
    before, after = report.original.latency, report.compressed.latency
    _curve(axes, before, "original", _ORIGINAL)
    _curve(axes, after, "compressed", _COMPRESSED)
    axes.set_xlim(0, _TAIL_ROOM * max(before.p95_s, after.p95_s, before.p50_s, after.p50_s))
    axes.set_ylim(0, 1.02)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda seconds, _: time_text(seconds))
    axes.yaxis.set_major_formatter(lambda fraction, _: f"{fraction:.0%}")
    axes.set_xlabel("time of one call")
    axes.set_ylabel("calls that took at most so long")
    axes.grid(True)
    figure.legend(loc="outside upper left", ncols=2)


def _curve(axes: Axes, latency: Latency, name: str, colour: str) -> None:
    samples = np.asarray(latency.samples_s or (latency.p50_s,))
    fractions = np.linspace(0, 1, _CURVE_POINTS)
    times = np.quantile(samples, fractions, method="inverted_cdf")
    label = f"{name}, median {time_text(latency.p50_s)}"
    axes.step(times, fractions, where="post", color=colour, linewidth=2, label=label)


def _sqnr_db(found: Deviation | None) -> float:
    """NaN, which draws nothing, where there is none."""
    return math.nan if found is None or found.sqnr_db is None else found.sqnr_db


def _paint_layers(figure: Figure, layers: Sequence[LayerReport], alone: Sequence[float]) -> None:
    bits, sqnr = figure.subplots(1, 2, sharey=True, width_ratios=[2, 3])
    rows = np.arange(len(layers))
    bits.barh(rows - 0.2, [x.weight_bits for x in layers], color=_COMPRESSED, height=0.36)
    bits.barh(rows + 0.2, [x.activation_bits for x in layers], color=_ACTIVATION, height=0.36)
    _paint_sqnr(sqnr, layers, alone)
    for axes, title in ((bits, "Bits"), (sqnr, "SQNR in dB")):
        axes.set_title(title)
        axes.tick_params(top=True, labeltop=True, left=False)
        axes.grid(True, axis="x")
    bits.set_yticks(rows, [_name(layer.name, _NAME_LENGTH) for layer in layers], fontsize=7.5)
    bits.set_ylim(len(layers) - 0.4, -0.6)
    bits.set_xticks([0, 8, 16, 32])
    bits.set_xlim(0, 34)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, columnspacing=1.0, handletextpad=0.3)


def _paint_sqnr(axes: Axes, layers: Sequence[LayerReport], alone: Sequence[float]) -> None:
    """Of each weight a square; of each output a dot, and a ring where this layer alone puts it."""
    rows = np.arange(len(layers))
    # None becomes NaN, which draws nothing.
    weight, output = (
        np.array(values, dtype=np.float64)
        for values in ([x.weight_sqnr_db for x in layers], [x.output_sqnr_db for x in layers])
    )
    axes.hlines(rows, np.fmin(output, alone), np.fmax(output, alone), color=_ACTIVATION, linewidth=1.2)
    axes.plot(weight, rows, "s", color=_COMPRESSED, markersize=4.5, label="weight")
    axes.plot(output, rows, "o", color=_ACTIVATION, markersize=5, label="input (bits), output (SQNR)")
    if not np.isnan(alone).all():
        label = "output, this layer alone"
        axes.plot(alone, rows, "o", color=_ACTIVATION, markersize=5, fillstyle="none", label=label)
    found = np.concatenate([weight, output, alone])
    if not np.isnan(found).all():
        axes.set_xlim(min(0.0, 1.1 * float(np.nanmin(found))), max(1.0, 1.08 * float(np.nanmax(found))))


def _paint_slices(figure: Figure, slices: Sequence[Slice], wording: MetricWording) -> None:
    axes = figure.subplots()
    rows = range(len(slices))
    drops = [part.drop for part in slices]
    axes.barh(rows, drops, color=[_WORSE if drop > 0 else _COMPRESSED for drop in drops], height=0.7)
    for row, part in enumerate(slices):
        change = wording.change(part.drop)
        _beside(axes, max(0.0, part.drop), row, f"{change} ({part.examples:,})")
    low, high = min(0.0, *drops, 0.0), max(0.0, *drops, 0.0)
    axes.set_xlim(low, high + 0.9 * ((high - low) or 1.0))
    axes.set_yticks(rows, [_name(part.name, _SLICE_NAME_LENGTH) for part in slices])
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.xaxis.set_visible(False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(left=False)


def _paint_attempts(figure: Figure, report: Report) -> None:
    wording, quality = metric_wording(report), report.original.quality.value
    axes = figure.subplots()
    axes.plot(report.original.storage_bytes, quality, "*", color=_ORIGINAL, markersize=12, label="original")
    for index, attempt in enumerate(measured_attempts(report)):
        chosen = attempt.name == report.technique
        axes.plot(
            attempt.storage_bytes or 0,
            quality - (attempt.quality_drop or 0.0),
            _MARKERS[index % len(_MARKERS)],
            color=_COMPRESSED,
            fillstyle="full" if chosen else "none",
            markersize=9,
            markeredgewidth=1.5,
            label=_name(attempt.name, _SLICE_NAME_LENGTH) + (" (chosen)" if chosen else ""),
        )
    axes.margins(0.15)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=6)
    axes.xaxis.set_major_formatter(lambda nbytes, _: bytes_text(nbytes))
    beyond = 1.0 + 1e-9 if wording.percent else math.inf  # margins reach past the best there is
    axes.yaxis.set_major_formatter(lambda value, _: "" if value > beyond else wording.quality(value))
    axes.set_xlabel("size on disk")
    axes.set_ylabel(_name(report.metric, _TITLE_LENGTH))
    axes.grid(True)
    figure.legend(loc="outside right upper")
