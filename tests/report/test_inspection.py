from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from sample_report import hostile, sample

from flyweight.core.analysis import RELATIVE, Analysis
from flyweight.core.report import Report
from flyweight.report.inspection import print_analysis, print_layer
from flyweight.report.loss_summary import lead
from flyweight.report.wording import damage_text


def _analysis(report: Report) -> Analysis:
    assert report.analysis is not None
    return report.analysis


def _ranking(report: Report, top: int = 10) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, color_system=None)
    print_analysis(report, _analysis(report), console, top=top)
    return file.getvalue()


def _layer(report: Report, place: int = 0) -> str:
    file = io.StringIO()
    analysis = _analysis(report)
    console = Console(file=file, width=80, color_system=None)
    print_layer(report, analysis, analysis.ranked[place], console)
    return file.getvalue()


@pytest.mark.parametrize("report", [sample(), hostile("n" * 200), hostile("a\x1b[31mb\ud800")])
def test_no_line_is_longer_than_eighty_columns_or_steers_the_terminal(report: Report) -> None:
    for printed in (_ranking(report, top=99), _layer(report), _layer(report, -1)):
        assert max(map(len, printed.splitlines())) <= 80
        assert "\x1b" not in printed
        printed.encode()


def test_the_costliest_layers_come_first_with_the_longest_bar() -> None:
    rows = [line.split() for line in _ranking(sample(), top=4).splitlines() if "conv" in line]
    costs = [float(row[7]) for row in rows if row[1] == "4"]  # percent signs stand by themselves
    assert len(costs) == 4
    assert costs == sorted(costs, reverse=True)
    assert rows[-4][8] == "█████"


def test_layers_that_are_not_shown_are_counted() -> None:
    assert "14 more do less; --top 18 lists all." in _ranking(sample(), top=4)
    assert "more do less" not in _ranking(sample(), top=18)


def test_what_was_measured_is_said() -> None:
    printed = " ".join(_ranking(sample()).split())
    assert "Measured on the PyTorch reference with 64 calibration examples, not on the file" in printed


def test_one_layer_is_shown_with_its_errors_and_their_shape() -> None:
    printed = " ".join(_layer(sample()).split())
    assert "4 bits, 1 of 18 by what it costs" in printed
    assert "output, this layer alone" in printed
    assert "Closest in shape: uniform (1.0 % off), then triangular (2.0 % off)" in printed


def test_the_tallest_column_of_a_histogram_reaches_the_top() -> None:
    report = sample(4)
    layer = _analysis(report).ranked[0]
    assert layer.histogram is not None
    counts = (0, 4, 8, 1)
    one = replace(layer, histogram=replace(layer.histogram, counts=counts))
    analysis = replace(_analysis(report), layers=(one,))
    file = io.StringIO()
    print_layer(report, analysis, one, Console(file=file, width=80, color_system=None))
    pictured = [line[2:6] for line in file.getvalue().splitlines() if set(line) & set("▆█")]
    assert pictured == ["  █ "] * 3 + [" ██ "] * 2 + [" ██▆"]


def test_a_layer_that_was_not_tried_says_so() -> None:
    assert "was not tried" in _layer(sample(), -1)


def test_with_one_layer_there_is_no_worst() -> None:
    analysis = _analysis(sample(4))
    assert "By itself" in lead(analysis)
    assert "By itself" not in lead(replace(analysis, layers=analysis.layers[:1]))


@pytest.mark.parametrize(
    ("damage", "unit", "text"),
    [
        (0.00381, "KL divergence, nats", "0.0038"),
        (0.0000065, "KL divergence, nats", "6.5e-06"),
        (0.0321, RELATIVE, "3.2 %"),
        (1.234, RELATIVE, "123 %"),
        (None, RELATIVE, "\N{EN DASH}"),
    ],
)
def test_damages_are_written_with_two_digits(damage: float | None, unit: str, text: str) -> None:
    assert damage_text(damage, unit) == text
