"""Histograms of activations: counted in any order, merged exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.measure.histogram import MAX_BINS, Histogram

values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50)


def histogram(*parts):
    result = Histogram()
    for part in parts:
        result.add(torch.as_tensor(part, dtype=torch.float32))
    return result


def as_pairs(h):
    return {float(c): int(n) for c, n in zip(h.centres(), h.counts, strict=True) if n}


@settings(max_examples=30)
@given(values, values)
def test_merge_of_two_is_one_of_all(one, other):
    merged = histogram(one)
    merged.merge(histogram(other))
    whole = histogram(one + other)
    assert merged.exponent == whole.exponent
    assert as_pairs(merged) == as_pairs(whole)
    assert (merged.low, merged.high) == (whole.low, whole.high)


@settings(max_examples=30)
@given(values, values)
def test_order_of_batches_does_not_matter(one, other):
    assert as_pairs(histogram(one, other)) == as_pairs(histogram(other, one))


@settings(max_examples=30)
@given(values)
def test_each_value_lies_in_its_bin(numbers):
    h = histogram(numbers)
    half = 2.0**h.exponent / 2
    assert int(h.counts.sum()) == len(numbers)
    assert len(h.counts) <= MAX_BINS
    for number in torch.tensor(numbers, dtype=torch.float32).tolist():
        assert any(abs(number - c) <= half * 1.001 for c in as_pairs(h))


def test_bins_grow_coarser_when_values_grow():
    h = histogram([0.0, 1.0])
    fine = h.exponent
    h.add(torch.tensor([1000.0]))
    assert h.exponent > fine
    assert int(h.counts.sum()) == 3


@pytest.mark.parametrize("value", [1.0, -3e38, 1e-38, 0.0])
def test_constant_activations_are_counted(value):
    h = histogram([value] * 5)
    assert int(h.counts.sum()) == 5
    assert float(h.centres()[h.counts.argmax()]) == pytest.approx(value, rel=1e-6, abs=2.0**-126)


def test_empty_parts_change_nothing():
    h = histogram([1.0, 2.0])
    before = as_pairs(h)
    h.add(torch.zeros(0))
    h.merge(Histogram())
    assert as_pairs(h) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        histogram([1.0, bad])
