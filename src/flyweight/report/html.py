"""report.html: one self-contained page, readable offline, in light and dark, on a phone and on paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from flyweight.core.report import Report
from flyweight.report import plots
from flyweight.report.html_figure import HtmlFigure, html_figure
from flyweight.report.html_loss import loss_section
from flyweight.report.summary import comparison_rows, facts, headline
from flyweight.report.wording import (
    bytes_text,
    count_text,
    metric_wording,
    percent_text,
    printable,
    ratio_text,
    speedup_text,
    times_text,
)

_TEMPLATE = "report.html.j2"


@final
@dataclass(frozen=True, kw_only=True)
class _Card:
    label: str
    value: str
    detail: str


def to_html(report: Report) -> str:
    """The page. Names that come from a user, a model or its data are escaped; deterministic."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    environment.filters.update(bytes=bytes_text, count=count_text, times=times_text)
    source = files("flyweight.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        headline=headline(report),
        cards=_cards(report),
        rows=comparison_rows(report),
        facts=facts(report),
        figures=_figures(report),
        layers_figure=_layers_figure(report),
        loss=None if report.analysis is None else loss_section(report.analysis),
        wording=metric_wording(report),
        conditions=_conditions(report),
    )


def _finalize(value: object) -> object:
    """Text without control characters and lone surrogates; markup made here is left alone."""
    return value if isinstance(value, Markup) else printable(str(value))


def _cards(report: Report) -> tuple[_Card, ...]:
    before, after, comparison = report.original, report.compressed, report.comparison
    speed, _, interval = speedup_text(comparison.speedup).partition(" [")
    wording, drop = metric_wording(report), comparison.quality_drop
    cards = [
        _Card(
            label="Size on disk",
            value=ratio_text(before.storage_bytes, after.storage_bytes, less="smaller", more="larger"),
            detail=f"{bytes_text(before.storage_bytes)} to {bytes_text(after.storage_bytes)}",
        ),
        _Card(
            label="Speed",
            value=speed,
            detail=f"{percent_text(comparison.speedup.confidence, 0)} interval [{interval}",
        ),
        _Card(
            label=report.metric,
            value=wording.change(drop.value),
            detail=f"drop {wording.drop(drop.value)} {wording.drop_interval(drop)}",
        ),
    ]
    if comparison.agreement is not None:
        detail = f"{comparison.test.lost:,} lost, {comparison.test.gained:,} gained"
        cards.append(
            _Card(label="Answers unchanged", value=percent_text(comparison.agreement), detail=detail)
        )
    return tuple(cards)


def _figures(report: Report) -> tuple[HtmlFigure, ...]:
    found = [_before_after_figure(report), _latency_figure(report)]
    if report.comparison.slices:
        found.append(_slices_figure(report))
    if len(report.attempts) > 1 and plots.measured_attempts(report):
        found.append(_attempts_figure(report))
    return tuple(found)


def _before_after_figure(report: Report) -> HtmlFigure:
    rows = comparison_rows(report)
    return html_figure(
        plots.before_after(report),
        title="Size, latency, quality",
        caption=f"Whiskers: latency up to its 95th percentile; quality with its "
        f"{percent_text(report.original.quality.confidence, 0)} bootstrap interval.",
        alt="Bars: " + "; ".join(f"{r.label} {r.original} before, {r.compressed} after" for r in rows),
    )


def _latency_figure(report: Report) -> HtmlFigure:
    rounds = len(report.compressed.latency.samples_s)
    medians = next(row for row in comparison_rows(report) if row.label == "Latency p50")
    return html_figure(
        plots.latency_distribution(report),
        title="Latency distribution",
        caption=f"{rounds:,} calls of each file, in turn; further left is faster. The slowest few percent "
        "may lie beyond the axis.",
        alt=f"Curves of the time of one call: median {medians.original} before, {medians.compressed} after.",
    )


def _slices_figure(report: Report) -> HtmlFigure:
    wording, slices = metric_wording(report), report.comparison.slices
    shown = min(len(slices), plots.MAX_SLICES)
    worst = sorted(slices, key=lambda part: -part.drop)[:shown]
    return html_figure(
        plots.worst_slices(report),
        title="Worst classes and slices",
        caption=f"Change of quality on {shown} of {len(slices)} parts of the evaluation data, the worst on "
        "top; number of examples in brackets.",
        alt="Bars: " + "; ".join(f"{part.name} {wording.change(part.drop)}" for part in worst),
    )


def _attempts_figure(report: Report) -> HtmlFigure:
    wording, measured = metric_wording(report), plots.measured_attempts(report)
    listed = (
        f"{a.name} {bytes_text(a.storage_bytes or 0)}, drop {wording.drop(a.quality_drop or 0.0)}"
        for a in measured
    )
    return html_figure(
        plots.attempts_scatter(report),
        title="What was tried",
        caption="Further up is better, further left is smaller. The attempt that was chosen is filled.",
        alt="Points: " + "; ".join(listed),
    )


def _layers_figure(report: Report) -> HtmlFigure | None:
    if not report.layers:
        return None
    shown = len(plots.drawn_layers(report.layers))
    which = (
        "In execution order."
        if shown == len(report.layers)
        else f"The {shown} layers with the lowest output SQNR."
    )
    return html_figure(
        plots.layer_bars(report),
        title="Bits and error of each layer",
        caption=f"{which} SQNR: signal to quantization noise, higher is better; the output's with all "
        "earlier layers quantized too, and where a ring is drawn, alone. Measured on the PyTorch reference.",
        alt=f"Bars of {shown} layers; the table below holds the same numbers.",
    )


def _conditions(report: Report) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Headed tables of what the numbers depend on; empty ones are left out."""
    settings = {
        key: value if isinstance(value, str) else _json(value) for key, value in report.settings.items()
    }
    groups = (("Machine", report.machine), ("Versions", report.versions), ("Settings", settings))
    return tuple((title, values) for title, values in groups if values)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
