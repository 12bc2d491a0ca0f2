"""A report on the terminal; reads in 80 columns and without colour."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flyweight.core.report import Attempt, LayerReport, Report
from flyweight.report.summary import Fact, Row, comparison_rows, facts, headline
from flyweight.report.wording import (
    MetricWording,
    bytes_text,
    metric_wording,
    printable,
    shortened,
    times_text,
)

_LAYER_NAME_LENGTH = 32  # leaves the other columns of the layers table their width in 80


def print_report(report: Report, console: Console, *, layers: bool = False) -> None:
    """Print the before/after table, the facts and the verdict; ``layers`` adds a row for each layer."""
    console.print(_title(report))
    console.print(_comparison_table(comparison_rows(report)))
    console.print(_facts_table(facts(report)))
    if layers and report.layers:
        console.print(_layers_table(report.layers))
    if len(report.attempts) > 1:
        console.print(_attempts_table(report.attempts, report.technique, metric_wording(report)))
    for note in report.notes:
        console.print(Padding(Text.assemble(("Note: ", "bold"), printable(note)), (0, 0, 0, 1)))
    console.print(_verdict(report))


def _title(report: Report) -> Text:
    rest = f", {report.task}: {report.technique}"
    return Text.assemble(" ", (printable(report.model), "bold"), printable(rest))


def _table(*columns: str, numbers_from: int, title: str | None = None) -> Table:
    """Headed columns; those from index ``numbers_from`` are set right."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        title_style="bold",
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index >= numbers_from else "left", overflow="fold")
    return table


def _comparison_table(rows: tuple[Row, ...]) -> Table:
    table = _table("", "original", "compressed", numbers_from=1)
    table.add_column("change", overflow="fold")
    for row in rows:
        style = "" if row.better is None else "green" if row.better else "red"
        table.add_row(Text(printable(row.label)), row.original, row.compressed, Text(row.change, style=style))
    return table


def _facts_table(found: tuple[Fact, ...]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for fact in found:
        table.add_row(Text(f" {fact.label}"), Text(printable(fact.text)))
    return table


def _layers_table(layers: tuple[LayerReport, ...]) -> Table:
    title = "\n Layers (bits of weight/input; SQNR in dB of weight and output)"
    table = _table("layer", "technique", "bits", "stored", "weight", "output", numbers_from=2, title=title)
    for layer in layers:
        table.add_row(
            Text(shortened(printable(layer.name), _LAYER_NAME_LENGTH)),
            Text(printable(layer.technique)),
            f"{layer.weight_bits:g}/{layer.activation_bits}",
            bytes_text(layer.storage_bytes),
            _decibels(layer.weight_sqnr_db),
            _decibels(layer.output_sqnr_db),
        )
    return table


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _attempts_table(attempts: tuple[Attempt, ...], kept: str, wording: MetricWording) -> Table:
    table = _table("tried", "size", "speed", "drop", numbers_from=1, title="\n Attempts")
    table.add_column("outcome", overflow="fold")
    for attempt in attempts:
        table.add_row(
            Text(printable(attempt.name), style="bold" if attempt.name == kept else ""),
            "-" if attempt.storage_bytes is None else bytes_text(attempt.storage_bytes),
            "-" if attempt.speedup is None else times_text(attempt.speedup),
            "-" if attempt.quality_drop is None else wording.drop(attempt.quality_drop),
            Text(printable(attempt.outcome)),
        )
    return table


def _verdict(report: Report) -> Padding:
    if report.verdict.shipped:
        text = Text.assemble(("Shipped", "bold green"), f": {printable(headline(report))}.")
    else:
        text = Text.assemble(("Refused", "bold red"), f" ({printable(headline(report))}):")
        for reason in report.verdict.reasons:
            text.append(f"\n- {printable(reason)}")
    return Padding(text, (1, 0, 0, 1))
