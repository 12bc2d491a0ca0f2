"""Kullback-Leibler divergence of a histogram and its rounded form, against the source's loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.tensors.entropy import EMPTY_BIN, divergence, histograms


def migacz(counts: list[float], levels: int, kept: int) -> float:
    """The divergence in the source's pseudo code: ``kept`` bins of a positive histogram, the rest clipped."""
    reference = counts[:kept]
    reference[-1] += sum(counts[kept:])
    share = kept // levels
    candidate = []
    for level in range(levels):
        bins = slice(level * share, (level + 1) * share)
        filled = [count > 0 for count in reference[bins]]
        each = sum(counts[bins]) / max(sum(filled), 1)
        candidate += [max(each * is_filled, EMPTY_BIN) for is_filled in filled]
    p = [count / sum(reference) for count in reference]
    q = [count / sum(counts[:kept]) for count in candidate]
    return sum(one * math.log(one / other) for one, other in zip(p, q, strict=True) if one > 0)


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 50), min_size=32, max_size=32).filter(lambda c: sum(c[:8]) > 0),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([8, 16, 24, 32]),
)
def test_divergence_is_that_of_the_source(counts, levels, kept):
    codes = torch.arange(32) // (kept // levels)
    got = divergence(torch.tensor([counts], dtype=torch.float64), codes[None], levels)
    assert float(got) == pytest.approx(migacz([float(c) for c in counts], levels, kept), rel=1e-9, abs=1e-12)


def test_a_code_for_each_bin_loses_nothing():
    counts = torch.tensor([[3.0, 0.0, 5.0, 1.0]], dtype=torch.float64)
    assert float(divergence(counts, torch.arange(4)[None], 4)) == pytest.approx(0, abs=1e-12)


def test_values_on_both_sides_of_the_grid_are_counted_at_its_ends():
    counts = torch.tensor([[4.0, 1.0, 1.0, 4.0]], dtype=torch.float64)
    got = divergence(counts, torch.tensor([[-1, 0, 1, 2]]), 2)
    assert float(got) == pytest.approx(0.0, abs=1e-12)  # half and half, before and after
    lopsided = torch.tensor([[4.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    wanted = 5 / 6 * math.log(5 / 3) + 1 / 6 * math.log(1 / 3)
    assert float(divergence(lopsided, torch.tensor([[-1, 0, 1, 2]]), 2)) == pytest.approx(wanted)


def test_a_grid_that_holds_no_value_is_infinitely_far():
    counts = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    assert float(divergence(counts, torch.tensor([[-1, 0]]), 1)) == math.inf


def test_histograms_count_what_is_not_zero():
    groups = torch.tensor([[0.0, 0.0, 0.1, 3.9], [-4.0, 4.0, 0.0, 3.0]])
    counts, centres = histograms(groups, groups.amin(1), groups.amax(1), bins=4)
    assert counts[0].tolist() == [1, 0, 0, 1]
    assert counts[1].tolist() == [1, 0, 0, 2]
    assert centres[1].tolist() == [-3, -1, 1, 3]
