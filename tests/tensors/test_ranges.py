"""Ranges of weights: the methods against each other, and against what they minimise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.tensors.entropy import divergence, histograms
from flyweight.tensors.ranges import (
    ENTROPY_BINS,
    RANGE_METHODS,
    Grid,
    InputStatistics,
    range_of,
    shrink_ratios,
)

WIDTHS = (*range(2, 9), 16)
seeds = st.integers(0, 10_000)


def values(seed, groups=6, size=50, power=3):
    return torch.randn(groups, size, generator=torch.Generator().manual_seed(seed)).pow(power)


def error(groups, grid, ends, inputs=None):
    scale, zero = grid.scale_and_zero_point(*ends)
    codes = grid.quantize(groups, scale[:, None], zero[:, None])
    off = ((codes - zero[:, None]) * scale[:, None] - groups).double()
    if inputs is None:
        return off.square().sum(1)
    if inputs.mean is None:
        return (off.square() * inputs.energy).sum(1)
    second = torch.diag((inputs.energy - inputs.mean.square())[0]) + inputs.mean.T @ inputs.mean
    return ((off @ second.double()) * off).sum(1)


@pytest.mark.parametrize("bits", [0, 1, 9, 15, 17])
def test_grid_refuses_other_widths(bits):
    with pytest.raises(ValueError, match=rf"bits must be in 2..8 or 16, got {bits}"):
        Grid(bits, symmetric=True)


@pytest.mark.parametrize("symmetric", [True, False])
def test_sixteen_bits_are_off_by_half_a_step_at_most(symmetric):
    groups, grid = values(0), Grid(16, symmetric)
    ends = range_of(groups, grid, "minmax")
    scale, zero = grid.scale_and_zero_point(*ends)
    codes = grid.quantize(groups, scale[:, None], zero[:, None])
    assert codes.min() >= -32768
    assert codes.max() <= 32767
    off = ((codes - zero[:, None]) * scale[:, None] - groups).abs()
    assert (off <= scale[:, None] * (0.501 if symmetric else 1.001)).all()


@settings(max_examples=40)
@given(st.sampled_from(WIDTHS), st.booleans(), seeds, st.sampled_from(["", "energy", "mean"]))
def test_adaptive_range_is_never_worse_than_any_other(bits, symmetric, seed, weighted):
    grid, groups = Grid(bits, symmetric), values(seed)
    mean = values(seed + 2, groups=1)
    energy = values(seed + 1, groups=1).abs() + mean.square()
    inputs = InputStatistics(energy, mean if weighted == "mean" else None) if weighted else None
    least = error(groups, grid, range_of(groups, grid, "adaptive", inputs=inputs), inputs)
    for method in RANGE_METHODS:
        other = error(groups, grid, range_of(groups, grid, method), inputs)
        assert (least <= other * (1 + 1e-5) + 1e-9).all(), method


def test_energy_moves_the_range_to_the_columns_that_count():
    groups = torch.cat([torch.linspace(-1, 1, 63), torch.tensor([8.0])])[None]
    energy = torch.ones(1, 64)
    grid = Grid(3, symmetric=True)
    energy[0, -1] = 1e-6
    _, narrow = range_of(groups, grid, "adaptive", inputs=InputStatistics(energy))
    energy[0, -1] = 1e6
    _, wide = range_of(groups, grid, "adaptive", inputs=InputStatistics(energy))
    assert float(narrow) < 1.3
    assert float(wide) > 7


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_entropy_range_has_the_least_divergence_of_those_tried(bits, symmetric):
    groups, grid = values(0, groups=2, size=20_000), Grid(bits, symmetric)
    low, high = groups.amin(1), groups.amax(1)
    counts, centres = histograms(groups, low, high, bins=ENTROPY_BINS)

    def lost(ends):
        scale, zero = grid.scale_and_zero_point(*ends)
        codes = (centres / scale[:, None]).round() + zero[:, None] - grid.lowest
        levels = grid.highest - grid.lowest + 1
        return divergence(counts, codes.clamp(-1, levels).long(), levels)

    tried = torch.stack([lost((low * ratio, high * ratio)) for ratio in shrink_ratios(bits)])
    torch.testing.assert_close(lost(range_of(groups, grid, "entropy")), tried.amin(0), rtol=0, atol=1e-8)
    assert (range_of(groups, grid, "entropy")[1] < high).all()


def test_entropy_range_does_not_follow_the_zeros_after_a_relu():
    x = values(0, groups=1, size=20_000, power=1)
    one, other = (range_of(v, Grid(8, symmetric=True), "entropy")[1] for v in (x, x.relu()))
    torch.testing.assert_close(one, other, rtol=0.15, atol=0)


def test_entropy_of_few_values_is_minmax():
    groups = values(0, size=ENTROPY_BINS - 1)
    low, high = range_of(groups, Grid(4, symmetric=True), "entropy")
    assert torch.equal(low, groups.amin(1))
    assert torch.equal(high, groups.amax(1))


def test_each_group_has_the_range_it_has_alone():
    groups = values(0, groups=3, size=3000)
    for method in RANGE_METHODS:
        together = range_of(groups, Grid(4, symmetric=False), method)
        for row in range(3):
            alone = range_of(groups[row : row + 1], Grid(4, symmetric=False), method)
            assert [float(end[row]) for end in together] == [float(end) for end in alone], method


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3e38, 1e-38])
@pytest.mark.parametrize("bits", WIDTHS)
def test_constant_groups_are_exact(method, value, bits):
    groups, grid = torch.full((2, 2100), value), Grid(bits, symmetric=True)
    ends = range_of(groups, grid, method)
    scale, zero = grid.scale_and_zero_point(*ends)
    codes = grid.quantize(groups, scale[:, None], zero[:, None])
    torch.testing.assert_close(codes * scale[:, None], groups, rtol=1e-6, atol=1e-37)
