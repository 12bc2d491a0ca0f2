from __future__ import annotations

import io

import pytest
from rich.console import Console
from sample_report import bare, hostile, refused, sample

from flyweight.core.report import Report
from flyweight.report.terminal import print_report


def _printed(report: Report, *, layers: bool = False, color_system: str | None = None) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, color_system=color_system, force_terminal=color_system is not None)  # type: ignore[arg-type]
    print_report(report, console, layers=layers)
    return file.getvalue()


@pytest.mark.parametrize("report", [sample(), refused(), bare(), hostile("n" * 200)])
def test_no_line_is_longer_than_eighty_columns(report: Report) -> None:
    assert max(map(len, _printed(report, layers=True).splitlines())) <= 80


def test_each_measure_stands_on_one_line_with_its_change() -> None:
    lines = [" ".join(line.split()) for line in _printed(sample()).splitlines()]
    assert "Size on disk 1.12 MB 305 kB 3.69\N{MULTIPLICATION SIGN} smaller" in lines
    assert "Latency p50 2.21 ms 863 µs 2.57\N{MULTIPLICATION SIGN} faster [2.55, 2.60]" in lines
    assert "Energy (estimated) 32.1 mJ 12.5 mJ 2.57\N{MULTIPLICATION SIGN} less" in lines
    assert "top-1 accuracy 92.59 % 92.53 % 0.06 points lower" in lines


def test_drop_is_given_with_interval_and_test() -> None:
    printed = " ".join(_printed(sample()).split())
    assert "0.06 points, 95 % interval [-0.04, 0.17]; McNemar (exact) p = 0.31" in printed
    assert "99.31 % unchanged; 34 lost, 28 gained of 10,000 examples" in printed


def test_the_verdict_comes_last() -> None:
    assert _printed(sample()).splitlines()[-1].startswith(" Shipped: 3.69\N{MULTIPLICATION SIGN} smaller")


def test_a_refusal_lists_every_reason() -> None:
    printed = _printed(refused())
    assert "Refused" in printed
    assert all(f"- {reason}" in printed for reason in refused().verdict.reasons)


def test_verdict_is_green_or_red() -> None:
    assert "\x1b[1;32mShipped" in _printed(sample(), color_system="standard")
    assert "\x1b[1;31mRefused" in _printed(refused(), color_system="standard")


def test_layers_are_shown_on_demand() -> None:
    assert "stages.0.blocks.1.conv1" not in _printed(sample())
    assert "stages.0.blocks.1.conv1" in _printed(sample(), layers=True)


def test_attempts_are_shown_where_there_was_a_choice() -> None:
    assert "dynamic_int8" in _printed(sample())
    assert "Attempts" not in _printed(bare())


def test_markup_and_escape_sequences_in_names_are_shown_as_text() -> None:
    printed = _printed(hostile("[red]x[/red]\x1b[2J"), layers=True)
    assert "[red]x[/red]?[2J" in printed
    assert "\x1b" not in printed
