"""The page's part on where quality is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from flyweight.core.analysis import Analysis
from flyweight.report import loss_plots
from flyweight.report.html_figure import HtmlFigure, html_figure
from flyweight.report.loss_summary import LossRow, conditions, damage_and_wider, lead, rows, unit_text


@final
@dataclass(frozen=True, kw_only=True)
class LossSection:
    """Sentences, figures and one row a layer; ``unit`` is of the damages in the rows."""

    lead: str
    conditions: str
    unit: str
    figures: tuple[HtmlFigure, ...]
    rows: tuple[LossRow, ...]


def loss_section(analysis: Analysis) -> LossSection | None:
    """The section; None where no layer was analysed."""
    if not analysis.layers:
        return None
    return LossSection(
        lead=lead(analysis),
        conditions=conditions(analysis),
        unit=unit_text(analysis.unit),
        figures=tuple(_figures(analysis)),
        rows=rows(analysis),
    )


def _figures(analysis: Analysis) -> Iterator[HtmlFigure]:
    worst = loss_plots.ranked(analysis)
    if worst:
        which = "Each layer" if len(worst) == len(analysis.layers) else f"The {len(worst)} worst layers, each"
        yield html_figure(
            loss_plots.ranking(analysis),
            title="What each layer costs, and would gain",
            caption=f"{which} quantized alone: how far the model's output moves "
            f"({unit_text(analysis.unit)}); then with weights rounded to nearest one width higher, and what "
            "that takes.",
            alt="Bars: " + "; ".join(f"{x.name} {damage_and_wider(x, analysis.unit)}" for x in worst),
        )
    yield html_figure(
        loss_plots.propagation(analysis),
        title="How errors travel",
        caption="Relative error of each layer's output, in execution order. Orange above blue: errors of "
        "earlier layers arrive. Orange below blue: the layer makes up for them.",
        alt="Two curves over the layers; the table below holds the same numbers.",
    )
    drawn = loss_plots.with_histogram(analysis)
    if drawn:
        yield html_figure(
            loss_plots.error_histograms(analysis),
            title="Rounding errors of the weights",
            caption="Distributions of the same mean and variance, the closest one drawn thick, with its "
            "Kolmogorov-Smirnov distance. Rounding to nearest is uniform over one step; rounding that makes "
            "up for other weights is wider.",
            alt="Histograms of " + ", ".join(layer.name for layer in drawn),
        )
