"""The figures of where quality is lost, each as one SVG element."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from flyweight.core.analysis import Analysis, ErrorHistogram, Fit, LayerLoss
from flyweight.report.figure import INK, draw
from flyweight.report.loss_summary import more_text
from flyweight.report.wording import damage_text, percent_text, printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import LineStyleType

MAX_RANKED = 20
MAX_HISTOGRAMS = 6

# Told apart by every kind of colour vision, and at a contrast of 3:1 or more to white and to black.
_NOW = "#d55e00"
_WIDER = "#2f7ed8"
_ALONE = "#2f7ed8"
_TOGETHER = "#d55e00"
_ERRORS = "#8b93a1"
# shape -> density of (error - centre) / spread, colour, line
_FITS: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], str, LineStyleType]] = {
    "uniform": (lambda x: np.where(np.abs(x) <= 1, 0.5, 0.0), "#2f7ed8", "-"),
    "triangular": (lambda x: np.maximum(0.0, 1.0 - np.abs(x)), "#009e73", "--"),
    "gaussian": (lambda x: np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), "#d55e00", "-."),
}

_WIDTH = 5.4  # inches, as `flyweight.report.plots`
_NAME_LENGTH = 26
_SHAPE_LENGTH = 10
_TICKS = 18  # names of layers that an axis of this width has room for
_VALUE_ROOM = 0.75  # of the longest bar, right of it, for what it says
_CURVE_POINTS = 241
_MARGIN = 1.15  # of an axis of errors, beyond its bins
_COLUMNS = 2


def ranked(analysis: Analysis) -> tuple[LayerLoss, ...]:
    """The layers that `ranking` draws, the worst first."""
    return tuple(layer for layer in analysis.ranked if layer.damage is not None)[:MAX_RANKED]


def with_histogram(analysis: Analysis) -> tuple[LayerLoss, ...]:
    """The layers that `error_histograms` draws, the worst first."""
    drawn = (layer for layer in analysis.ranked if layer.histogram is not None and _drawable(layer.histogram))
    return tuple(drawn)[:MAX_HISTOGRAMS]


def density(fit: Fit, errors: np.ndarray) -> np.ndarray:
    """Of the distribution at each error; zeros for one of no known shape or no width."""
    if fit.shape not in _FITS or not fit.spread > 0:
        return np.zeros_like(errors)
    of_standard, _, _ = _FITS[fit.shape]
    return of_standard((errors - fit.centre) / fit.spread) / fit.spread


def _drawable(histogram: ErrorHistogram) -> bool:
    return histogram.bound > 0 and sum(histogram.counts) > 0 and min(histogram.counts) >= 0


def ranking(analysis: Analysis) -> str:
    """Bars of what each layer alone does to the output, now and one width higher; the worst on top.

    Raises:
        ValueError: No layer was tried.
    """
    layers = ranked(analysis)
    if not layers:
        raise ValueError("the analysis holds no layer that was tried")
    paint = partial(_paint_ranking, layers=layers, unit=analysis.unit)
    return draw("loss-ranking", (_WIDTH, 1.0 + 0.25 * len(layers)), paint)


def propagation(analysis: Analysis) -> str:
    """Relative error of each layer's output in execution order: alone, and all before it quantized too."""
    return draw("loss-propagation", (_WIDTH, 3.9), partial(_paint_propagation, analysis=analysis))


def error_histograms(analysis: Analysis) -> str:
    """Rounding errors of the worst layers' weights, with the three distributions beside them.

    Raises:
        ValueError: No layer has any.
    """
    layers = with_histogram(analysis)
    if not layers:
        raise ValueError("the analysis holds no rounding errors")
    rows = -(-len(layers) // _COLUMNS)
    return draw("loss-errors", (_WIDTH, 0.45 + 1.55 * rows), partial(_paint_histograms, layers=layers))


def _name(layer: LayerLoss, length: int = _NAME_LENGTH) -> str:
    return shortened(printable(layer.name), length)


def _paint_ranking(figure: Figure, layers: Sequence[LayerLoss], unit: str) -> None:
    axes = figure.subplots()
    rows = np.arange(len(layers))
    now = np.array([layer.damage for layer in layers], dtype=np.float64)
    axes.barh(rows, now, color=_NOW, height=0.72, label="as it is")
    wider = [layer.wider.damage if layer.wider else None for layer in layers]
    # None becomes NaN, which draws no bar.
    axes.barh(
        rows, np.array(wider, dtype=np.float64), color=_WIDER, height=0.3, label=f"weights {_widths(layers)}"
    )
    longest = max(float(now.max()), *(value or 0.0 for value in wider)) or 1.0
    for row, layer in enumerate(layers):
        end = max(float(now[row]), wider[row] or 0.0)
        axes.annotate(
            _gain_text(layer, unit),
            (end, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(0, longest * (1 + _VALUE_ROOM))
    axes.set_yticks(rows, [_name(layer) for layer in layers], fontsize=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(loc="outside upper left", ncols=2)


def _widths(layers: Sequence[LayerLoss]) -> str:
    widths = {layer.wider.bits for layer in layers if layer.wider}
    return f"in {widths.pop()} bits" if len(widths) == 1 else "one width higher"


def _gain_text(layer: LayerLoss, unit: str) -> str:
    now = damage_text(layer.damage, unit)
    if layer.wider is None or layer.wider.damage is None:
        return now
    then = damage_text(layer.wider.damage, unit)
    return f"{now} \N{RIGHTWARDS ARROW} {then} ({more_text(layer.wider)})"


def _paint_propagation(figure: Figure, analysis: Analysis) -> None:
    from matplotlib.ticker import LogLocator

    axes = figure.subplots()
    layers = analysis.layers
    alone = [x.errors.output_alone.relative if x.errors.output_alone else None for x in layers]
    together = [x.errors.output.relative if x.errors.output else None for x in layers]
    places = np.arange(len(layers))
    marker = "o" if len(layers) <= 2 * _TICKS else ""
    for values, colour, label in (
        (together, _TOGETHER, "all layers before it quantized too"),
        (alone, _ALONE, "this layer alone"),
    ):
        shown = _positive(values)
        axes.plot(places, shown, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)
    axes.fill_between(places, _positive(alone), _positive(together), color=_TOGETHER, alpha=0.12, linewidth=0)
    if analysis.output is not None and analysis.output.relative:
        end = len(layers) - 1 + max(0.6, 0.02 * len(layers))
        axes.plot(
            end, analysis.output.relative, "*", color=_TOGETHER, markersize=11, label="the model's output"
        )
    if not np.isnan([*_positive(alone), *_positive(together)]).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    _name_layers(axes, layers)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("relative error of the output")
    axes.grid(True, axis="y")
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, columnspacing=1.2, handletextpad=0.5)


def _positive(values: Sequence[float | None]) -> np.ndarray:
    """What a logarithmic axis can hold; NaN leaves a gap."""
    return np.array([value if value and value > 0 else math.nan for value in values], dtype=np.float64)


def _name_layers(axes: Axes, layers: Sequence[LayerLoss]) -> None:
    every = max(1, -(-len(layers) // _TICKS))
    shown = range(0, len(layers), every)
    axes.set_xticks(
        list(shown),
        [_name(layers[i], 22) for i in shown],
        rotation=60,
        ha="right",
        rotation_mode="anchor",
        fontsize=7,
    )


def _paint_histograms(figure: Figure, layers: Sequence[LayerLoss]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = -(-len(layers) // _COLUMNS)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat[len(layers) :]:
        axes.remove()
    for axes, layer in zip(grid.flat, layers, strict=False):
        if layer.histogram is not None:
            _paint_histogram(axes, layer.histogram)
        axes.set_title(_name(layer), fontsize=8)
    lines = [
        Line2D([], [], color=colour, linestyle=line, linewidth=1.5, label=_shape_name(shape))
        for shape, (_, colour, line) in _FITS.items()
    ]
    handles = [Patch(color=_ERRORS, alpha=0.55, label="errors"), *lines]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=4, fontsize=8, columnspacing=1.2, handletextpad=0.5
    )


def _paint_histogram(axes: Axes, histogram: ErrorHistogram) -> None:
    edges = np.linspace(-histogram.bound, histogram.bound, len(histogram.counts) + 1)
    total = sum(histogram.counts) + histogram.outside
    heights = np.array(histogram.counts) / (total * (edges[1] - edges[0]))
    axes.stairs(heights, edges, fill=True, color=_ERRORS, alpha=0.55)
    reach = _MARGIN * histogram.bound
    points = np.linspace(-reach, reach, _CURVE_POINTS)
    highest = float(heights.max())
    for place, fit in enumerate(histogram.fits):
        _, colour, line = _FITS.get(fit.shape, (None, _ERRORS, ":"))
        curve = density(fit, points)
        highest = max(highest, float(curve.max()))
        axes.plot(points, curve, line, color=colour, linewidth=2.0 if place == 0 else 0.9)
    if histogram.fits:
        best = histogram.fits[0]
        text = f"{_shape_name(best.shape)}, {percent_text(best.distance, 1)} off"
        axes.text(0.5, 0.06, text, transform=axes.transAxes, ha="center", fontsize=7.5, color=INK)
    axes.set_ylim(0, 1.06 * highest)
    axes.set_xlim(-reach, reach)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize=7)
    unit = "steps" if histogram.unit == "steps" else "in units of the weight"
    axes.set_xlabel(unit, fontsize=7, labelpad=1)


def _shape_name(shape: str) -> str:
    return "Gaussian" if shape == "gaussian" else shortened(printable(shape), _SHAPE_LENGTH)
