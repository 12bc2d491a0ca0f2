from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_report import bare, sample

from flyweight.core.report import Estimate
from flyweight.report.wording import (
    MetricWording,
    bytes_text,
    count_text,
    metric_wording,
    p_text,
    printable,
    ratio_text,
    shortened,
    speedup_text,
    time_text,
)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999.9, "1.00 kB"),
        (999_600, "1.00 MB"),
        (11_412_345, "11.4 MB"),
        (2.5e9, "2.50 GB"),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_unit(nbytes: float, text: str) -> None:
    assert bytes_text(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (2.0, "2 s"), (0.0234, "23.4 ms"), (853e-6, "853 µs"), (2e-10, "0.20 ns")],
)
def test_times_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_counts_have_a_decimal_prefix() -> None:
    assert [count_text(n) for n in (7, 11_170_000, 1_814_000_000)] == ["7", "11.2 M", "1.81 G"]


@given(st.floats(1.0, 1e14))
def test_bytes_never_need_more_than_seven_characters(nbytes: float) -> None:
    assert len(bytes_text(min(nbytes, 9.9e11)).split()[0]) <= 4


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (44.7, 12.0, "3.73\N{MULTIPLICATION SIGN} smaller"),
        (10, 12, "1.20\N{MULTIPLICATION SIGN} larger"),
        (5, 5, "same"),
        (1000, 1001, "about the same"),
        (3, 0, ""),
    ],
)
def test_ratios_say_which_way_they_go(before: float, after: float, text: str) -> None:
    assert ratio_text(before, after, less="smaller", more="larger") == text


def test_a_slowdown_is_written_as_its_reciprocal() -> None:
    assert (
        speedup_text(Estimate(value=0.8, low=0.5, high=1.25))
        == "1.25\N{MULTIPLICATION SIGN} slower [0.80, 2.00]"
    )


def test_tiny_p_values_are_bounded() -> None:
    assert [p_text(p) for p in (0.18, 1e-9)] == ["p = 0.18", "p < 0.001"]


def test_accuracies_are_percentages_and_their_drops_points() -> None:
    wording = metric_wording(sample())
    assert wording.quality(0.9259) == "92.59 %"
    assert wording.change(0.0006) == "0.06 points lower"
    assert wording.change(-0.0006) == "0.06 points higher"


def test_metrics_beyond_one_keep_their_own_unit() -> None:
    wording = metric_wording(bare())
    assert wording.quality(-0.31) == "-0.3100"
    assert wording.drop(0.25) == "0.2500"


def test_a_drop_that_rounds_to_zero_has_no_sign() -> None:
    wording = MetricWording(percent=True, points=True)
    assert wording.drop(-0.00001) == "0.00 points"
    assert wording.change(-0.00001) == "about the same"
    assert wording.change(0.0) == "same"


@given(st.text())
def test_printable_text_has_nothing_that_steers_a_terminal(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text(), st.integers(4, 40))
def test_shortened_text_fits_and_keeps_its_end(text: str, length: int) -> None:
    short = shortened(text, length)
    assert len(short) <= length
    assert text.endswith(short[-1:])
