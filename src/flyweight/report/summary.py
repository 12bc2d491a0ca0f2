"""What a report says, as rows of text: the before/after table and the facts around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from flyweight.core.report import Comparison, Measurement, Report
from flyweight.report.loss_summary import unit_text
from flyweight.report.wording import (
    bytes_text,
    count_text,
    damage_text,
    energy_text,
    metric_wording,
    p_text,
    percent_text,
    ratio_text,
    speedup_text,
    time_text,
)


@final
@dataclass(frozen=True)
class Row:
    """One measure, before and after, as text.

    Attributes:
        better: Whether the compressed file did better; None where neither is better.
    """

    label: str
    original: str
    compressed: str
    change: str
    better: bool | None


@final
@dataclass(frozen=True)
class Fact:
    """One labelled sentence."""

    label: str
    text: str


def headline(report: Report) -> str:
    """``"3.73× smaller, 1.92× faster, top-1 accuracy 0.07 points lower"``."""
    size = ratio_text(
        report.original.storage_bytes, report.compressed.storage_bytes, less="smaller", more="larger"
    )
    speed = speedup_text(report.comparison.speedup).partition(" [")[0]
    change = metric_wording(report).change(report.comparison.quality_drop.value)
    return ", ".join((size if "same" not in size else f"{size} size", speed, f"{report.metric} {change}"))


def comparison_rows(report: Report) -> tuple[Row, ...]:
    """The before/after table, one row a measure; measures nobody took are left out."""
    before, after = report.original, report.compressed
    rows = [
        _ratio_row("Size on disk", before.storage_bytes, after.storage_bytes, bytes_text, "smaller larger"),
        _ratio_row("Parameters", before.parameters, after.parameters, count_text, "fewer more"),
        _ratio_row("MACs", before.macs, after.macs, count_text, "fewer more"),
        _latency_row(report),
        _ratio_row("Latency p95", before.latency.p95_s, after.latency.p95_s, time_text, "faster slower"),
    ]
    if before.peak_rss_bytes is not None and after.peak_rss_bytes is not None:
        rows.append(
            _ratio_row("Peak memory", before.peak_rss_bytes, after.peak_rss_bytes, bytes_text, "less more")
        )
    rows += [
        _ratio_row(label, one.joules, other.joules, energy_text, "less more")
        for label, one, other in (
            ("Energy", before.energy, after.energy),
            ("Energy (estimated)", before.energy_estimate, after.energy_estimate),
        )
        if one is not None and other is not None
    ]
    return (*rows, *_quality_rows(report))


def facts(report: Report) -> tuple[Fact, ...]:
    """What the table cannot hold: drop with interval and test, answers changed, worst slice, conditions."""
    return (
        _drop_fact(report),
        *_answers_facts(report),
        *_loss_facts(report),
        _parity_fact(report),
        _timing_fact(report),
    )


def _ratio_row(
    label: str, before: int | float, after: int | float, text: Callable[[int | float], str], words: str
) -> Row:
    less, more = words.split()
    change = ratio_text(before, after, less=less, more=more)
    return Row(label, text(before), text(after), change, None if "same" in change else after < before)


def _latency_row(report: Report) -> Row:
    speedup = report.comparison.speedup
    before, after = (time_text(m.latency.p50_s) for m in (report.original, report.compressed))
    better = True if speedup.low > 1 else False if speedup.high < 1 else None
    return Row("Latency p50", before, after, speedup_text(speedup), better)


def _quality_rows(report: Report) -> tuple[Row, ...]:
    wording, drop = metric_wording(report), report.comparison.quality_drop
    before, after = report.original.quality, report.compressed.quality
    better = True if drop.high < 0 else False if drop.low > 0 else None
    rows = [
        Row(
            report.metric,
            wording.quality(before.value),
            wording.quality(after.value),
            wording.change(drop.value),
            better,
        ),
        Row(
            f"{percent_text(before.confidence, 0)} interval",
            wording.interval(before),
            wording.interval(after),
            "",
            None,
        ),
    ]
    errors = _calibration_errors(report.original, report.compressed)
    return (
        (*rows, _ratio_row("Calibration error", *errors, percent_text, "less more"))
        if errors
        else tuple(rows)
    )


def _calibration_errors(before: Measurement, after: Measurement) -> tuple[float, float] | None:
    if before.calibration_error is None or after.calibration_error is None:
        return None
    return before.calibration_error, after.calibration_error


def _drop_fact(report: Report) -> Fact:
    wording, drop, test = metric_wording(report), report.comparison.quality_drop, report.comparison.test
    interval = f"{percent_text(drop.confidence, 0)} interval {wording.drop_interval(drop)}"
    return Fact("Quality drop", f"{wording.drop(drop.value)}, {interval}; {test.name} {p_text(test.p_value)}")


def _answers_facts(report: Report) -> tuple[Fact, ...]:
    worst, wording = report.comparison.worst_slice, metric_wording(report)
    if worst is None:
        return (_flips_fact(report.comparison),)
    values = f"{wording.quality(worst.original)} to {wording.quality(worst.compressed)}"
    text = f"{worst.name}: {wording.change(worst.drop)} ({values}, {worst.examples:,} examples)"
    return _flips_fact(report.comparison), Fact("Worst slice", text)


def _loss_facts(report: Report) -> tuple[Fact, ...]:
    analysis = report.analysis
    worst = analysis.ranked[0] if analysis is not None and len(analysis.layers) > 1 else None
    if analysis is None or worst is None or worst.damage is None:
        return ()
    moved = f"{damage_text(worst.damage, analysis.unit)} ({unit_text(analysis.unit)})"
    return (Fact("Costliest layer", f"{worst.name}: by itself it moves the output by {moved}"),)


def _flips_fact(comparison: Comparison) -> Fact:
    test, examples = comparison.test, f"{comparison.examples:,} examples"
    if comparison.agreement is None:
        return Fact("Examples", f"{test.lost:,} worse, {test.gained:,} better of {examples}")
    unchanged = f"{percent_text(comparison.agreement)} unchanged"
    return Fact("Answers", f"{unchanged}; {test.lost:,} lost, {test.gained:,} gained of {examples}")


def _parity_fact(report: Report) -> Fact:
    parity = report.parity
    text = f"relative error {parity.relative_error:.2g} (at most {parity.tolerance:.2g} allowed)"
    return Fact("File against PyTorch", text)


def _timing_fact(report: Report) -> Fact:
    latency = report.compressed.latency
    threads = f"{latency.threads} thread{'s' if latency.threads != 1 else ''}"
    shapes = ", ".join(f"{name} {_shape(shape)}" for name, shape in latency.input_shapes.items())
    rounds = f"{len(latency.samples_s):,} calls of each file, in turn; the ratio is the median over rounds"
    return Fact("Timing", ", ".join(filter(None, (report.runtime, shapes, threads, rounds))))


def _shape(sizes: tuple[int, ...]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, sizes))
