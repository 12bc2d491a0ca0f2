"""Sizes, times and drops as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.units import parse_bytes, parse_drop, parse_joules, parse_seconds


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("25MB", 25e6),
        ("300 kB", 300e3),
        ("1.5MiB", 1.5 * 2**20),
        ("300KB", 300e3),
        (1000, 1000),
        (".5 gb", 5e8),
    ],
)
def test_sizes_are_bytes(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("15ms", 0.015), ("200us", 2e-4), ("1 s", 1.0), ("3µs", 3e-6), (0.5, 0.5)]
)
def test_times_are_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "drop"), [("0.5%", 0.005), ("0.005", 0.005), (0, 0.0), ("100 %", 1.0)])
def test_drops_are_fractions(text, drop):
    assert parse_drop(text) == pytest.approx(drop)


def test_energies_are_joules():
    assert parse_joules("3mJ") == pytest.approx(0.003)


@pytest.mark.parametrize("text", ["abc", "", "25 parsecs", "1e999", "nan", "5%", "--3MB", True])
def test_what_is_no_size_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"25MB, 300kB or 1\.5MiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "-1MB", 0.0])
def test_a_size_is_above_zero(text):
    with pytest.raises(ValueError, match="above 0"):
        parse_bytes(text)


def test_a_drop_is_not_negative():
    with pytest.raises(ValueError, match="at least 0"):
        parse_drop("-1%")


@given(st.floats(min_value=1e-6, max_value=1e12), st.sampled_from(["kB", "MB", "MiB"]))
def test_a_larger_number_is_a_larger_size(number, unit):
    assert parse_bytes(f"{2 * number}{unit}") > parse_bytes(f"{number}{unit}") > 0
