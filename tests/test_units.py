"""Sizes, times and drops as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.units import parse_bytes, parse_drop, parse_factor, parse_joules, parse_seconds


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("25MB", 25e6),
        ("300 kB", 300e3),
        ("1.5MiB", 1.5 * 2**20),
        ("300KB", 300e3),
        ("1000 B", 1000),
        (".5 gb", 5e8),
    ],
)
def test_sizes_are_bytes(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("15ms", 0.015), ("200us", 2e-4), ("1 s", 1.0), ("3µs", 3e-6), ("0.5s", 0.5)]
)
def test_times_are_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "drop"), [("0.5%", 0.005), ("0.005", 0.005), (0, 0.0), ("100 %", 1.0)])
def test_drops_are_fractions(text, drop):
    assert parse_drop(text) == pytest.approx(drop)


def test_energies_are_joules():
    assert parse_joules("3mJ") == pytest.approx(0.003)


@pytest.mark.parametrize("text", ["abc", "", "25 parsecs", "1e999", "nan", "5%", "--3MB", True, math.inf])
def test_what_is_no_size_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"25MB, 300kB or 1\.5MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("parse", "given", "advice"),
    [
        (parse_seconds, "15", "15 has no unit; give one: 15ms or 15s"),
        (parse_seconds, 0.015, "0.015 has no unit; give one: 0.015ms or 0.015s"),
        (parse_bytes, "25", "25 has no unit; give one: 25MB or 25B"),
        (parse_bytes, 25e6, "25000000 has no unit"),
        (parse_joules, 5, "5 has no unit; give one: 5mJ or 5J"),
    ],
)
def test_a_bound_without_a_unit_is_refused_with_what_to_write(parse, given, advice):
    with pytest.raises(ValueError, match=advice):
        parse(given)


@given(st.floats(min_value=1e-12, max_value=1e15, allow_subnormal=False))
def test_a_number_with_its_base_unit_is_read_back_exactly(number):
    assert parse_bytes(f"{number}B") == parse_seconds(f"{number}s") == parse_joules(f"{number}J") == number


@pytest.mark.parametrize(
    ("text", "factor"), [("1/255", 1 / 255), ("0.0625", 0.0625), (" 1 / 2 ", 0.5), (2, 2.0), ("3/0.5", 6.0)]
)
def test_a_factor_may_be_a_fraction(text, factor):
    assert parse_factor(text) == factor


@pytest.mark.parametrize("text", ["1/0", "1/2/3", "abc", "", "nan", "1/", True, "1/1e-999"])
def test_what_is_no_factor_is_refused(text):
    with pytest.raises(ValueError, match="write for example 1/255"):
        parse_factor(text)


@pytest.mark.parametrize("text", ["0B", "-1MB", "0 MB"])
def test_a_size_is_above_zero(text):
    with pytest.raises(ValueError, match="above 0"):
        parse_bytes(text)


def test_a_drop_is_not_negative():
    with pytest.raises(ValueError, match="at least 0"):
        parse_drop("-1%")


@given(st.floats(min_value=1e-6, max_value=1e12), st.sampled_from(["kB", "MB", "MiB"]))
def test_a_larger_number_is_a_larger_size(number, unit):
    assert parse_bytes(f"{2 * number}{unit}") > parse_bytes(f"{number}{unit}") > 0
