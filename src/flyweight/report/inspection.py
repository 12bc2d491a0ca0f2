"""Where quality is lost, on the terminal; reads in 80 columns and without colour."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flyweight.core.analysis import Analysis, Deviation, ErrorHistogram, LayerLoss
from flyweight.core.report import Report
from flyweight.report.loss_summary import NOTHING, conditions, lead, more_text, row, unit_text, wider_text
from flyweight.report.wording import damage_text, percent_text, printable, shortened

_NAME_LENGTH = 18  # leaves the other columns their width in 80
_BAR_LENGTH = 5
_BLOCKS = " \N{LOWER ONE EIGHTH BLOCK}\N{LOWER ONE QUARTER BLOCK}\N{LOWER THREE EIGHTHS BLOCK}" + (
    "\N{LOWER HALF BLOCK}\N{LOWER FIVE EIGHTHS BLOCK}\N{LOWER THREE QUARTERS BLOCK}"
    "\N{LOWER SEVEN EIGHTHS BLOCK}\N{FULL BLOCK}"
)
_HEIGHT = 6  # lines of a histogram


def print_analysis(report: Report, analysis: Analysis, console: Console, *, top: int) -> None:
    """Print what all layers do together, and the ``top`` that do most."""
    console.print(_title(report))
    console.print(_indented(lead(analysis)))
    console.print(_ranking_table(analysis, top))
    left = len(analysis.layers) - top
    if left > 0:
        console.print(_indented(f"{left} more do less; --top {len(analysis.layers)} lists all."))
    console.print(_indented(conditions(analysis)))


def print_layer(report: Report, analysis: Analysis, layer: LayerLoss, console: Console) -> None:
    """Print all that is known of one layer."""
    console.print(_title(report))
    place = [other.name for other in analysis.ranked].index(layer.name) + 1
    where = f"{layer.bits:.3g} bits, {place} of {len(analysis.layers)} by what it costs"
    console.print(Text.assemble(" ", (printable(layer.name), "bold"), f": {where}"))
    console.print(_errors_table(layer))
    console.print(_indented(_cost(layer, analysis.unit)))
    if layer.histogram is not None:
        _print_histogram(layer.histogram, console)
    console.print(_indented(conditions(analysis)))


def _cost(layer: LayerLoss, unit: str) -> str:
    if layer.damage is None:
        return "What it does to the model's output was not tried."
    moved = f"By itself, it moves the model's output by {damage_text(layer.damage, unit)} ({unit_text(unit)})"
    wider = wider_text(layer, unit)
    return moved + (f"; with weights in {wider}." if wider else ".")


def _title(report: Report) -> Text:
    return Text.assemble(" ", (printable(report.model), "bold"), f", {printable(report.technique)}")


def _indented(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 1))


def _table(*columns: str) -> Table:
    """Headed columns; all but the first are set right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _ranking_table(analysis: Analysis, top: int) -> Table:
    names = (
        "layer",
        "bits",
        "weight\ndB",
        "output\nalone",
        "output,\nall",
        "costs",
        "",
        "one width\nhigher",
        "",
    )
    table = _table(*names)
    table.columns[6].justify = "left"
    most = max((layer.damage or 0.0 for layer in analysis.layers), default=0.0)
    for layer in analysis.ranked[:top]:
        found = row(layer, analysis.unit)
        table.add_row(
            Text(shortened(printable(layer.name), _NAME_LENGTH)),
            found.bits,
            found.weight[1],
            found.output_alone[0],
            found.output[0],
            found.damage,
            _bar(layer.damage, most),
            *_wider(layer, analysis.unit),
        )
    return table


def _wider(layer: LayerLoss, unit: str) -> tuple[str, str]:
    """``("8: 6.5e-06", "+288 B")``."""
    if layer.wider is None:
        return NOTHING, ""
    return f"{layer.wider.bits}: {damage_text(layer.wider.damage, unit)}", more_text(layer.wider)


def _bar(damage: float | None, most: float) -> str:
    if damage is None or not most > 0:
        return ""
    return _BLOCKS[-1] * max(0, round(_BAR_LENGTH * damage / most))


def _errors_table(layer: LayerLoss) -> Table:
    table = _table("", "MSE", "SQNR dB", "relative", "max", "cosine")
    for name, found in (
        ("weight", layer.errors.weight),
        ("output, this layer alone", layer.errors.output_alone),
        ("output, all before it too", layer.errors.output),
    ):
        table.add_row(name, *_numbers(found))
    return table


def _numbers(found: Deviation | None) -> tuple[str, ...]:
    if found is None:
        return (NOTHING,) * 5
    return (
        f"{found.mse:.2e}",
        NOTHING if found.sqnr_db is None else f"{found.sqnr_db:.1f}",
        NOTHING if found.relative is None else percent_text(found.relative),
        f"{found.max_abs:.3g}",
        NOTHING if found.cosine is None else f"{found.cosine:.5f}",
    )


def _print_histogram(histogram: ErrorHistogram, console: Console) -> None:
    unit = "steps of the codes" if histogram.unit == "steps" else "units of the weight"
    console.print(_indented(f"\nRounding errors of the weights, in {unit}:"))
    for line in _pictured(histogram.counts):
        console.print(Text(f"  {line}"))
    low, high = f"{-histogram.bound:.2g}", f"{histogram.bound:.2g}"
    middle = "0".center(len(histogram.counts) - len(low) - len(high))
    console.print(Text(f"  {low}{middle}{high}"))
    shapes = (f"{fit.shape} ({percent_text(fit.distance, 1)} off)" for fit in histogram.fits)
    if histogram.fits:
        console.print(_indented(f"Closest in shape: {printable(', then '.join(shapes))}.\n"))


def _pictured(counts: tuple[int, ...]) -> list[str]:
    """A bar chart of blocks, one column a bin, the highest line first."""
    most = max(counts, default=0) or 1
    eighths = np.rint(np.array(counts) / most * _HEIGHT * 8).astype(int)
    return [
        "".join(_BLOCKS[min(max(value - 8 * line, 0), 8)] for value in eighths.tolist())
        for line in reversed(range(_HEIGHT))
    ]
