"""Ranges of activations, found from their histograms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.measure.activation_ranges import activation_range, code_parameters
from flyweight.measure.histogram import Histogram
from flyweight.tensors.ranges import RANGE_METHODS, Grid, range_of, shrink_ratios


def histogram(*parts):
    result = Histogram()
    for part in parts:
        result.add(torch.as_tensor(part, dtype=torch.float32))
    return result


def test_minmax_range_covers_all_values_and_zero():
    assert activation_range(histogram([2.0, 5.0]), "minmax") == (0.0, 5.0)
    assert activation_range(histogram([-3.0, -1.0]), "minmax") == (-3.0, 0.0)


def test_percentile_range_leaves_out_a_lone_outlier():
    body = torch.rand(99_999, generator=torch.Generator().manual_seed(0))
    low, high = activation_range(histogram(torch.cat([body, torch.tensor([1000.0])])), "percentile")
    assert low == pytest.approx(0.0, abs=0.3)
    assert high < 2


def test_mse_range_is_the_best_of_the_candidates_tried_on_the_values():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).pow(3)
    low, high = float(x.min()), float(x.max())

    def error(ratio):
        scale, zero = code_parameters(low * ratio, high * ratio)
        codes = ((x / scale).round() + zero).clamp(0, 255)
        return float(((codes - zero) * scale - x).double().square().sum())

    errors = [error(ratio) for ratio in shrink_ratios(8)]
    chosen = activation_range(histogram(x), "mse")[1] / high
    assert error(chosen) <= min(errors) * 1.02
    assert chosen < 1


def test_range_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no value was seen"):
        activation_range(Histogram(), "minmax")


@given(st.floats(-1e6, 0), st.floats(0, 1e6))
def test_code_parameters_cover_the_range_and_hold_zero(low, high):
    scale, zero = code_parameters(low, high)
    assert scale > 0
    assert 0 <= zero <= 255
    assert -zero * scale <= low + scale
    assert (255 - zero) * scale >= high - scale


def squared_error(x, ends, bits):
    scale, zero = code_parameters(*ends, bits)
    codes = ((x.double() / scale).round() + zero).clamp(0, 2**bits - 1)
    return float(((codes - zero) * scale - x.double()).square().sum())


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(0, 10_000), st.sampled_from([1, 3]), st.booleans())
def test_adaptive_range_is_no_worse_than_any_other(bits, seed, power, positive):
    x = torch.randn(3000, generator=torch.Generator().manual_seed(seed)).pow(power)
    h = histogram(x.relu() if positive else x)
    binned = h.centres().repeat_interleave(h.counts.long())
    errors = {
        method: squared_error(binned, activation_range(h, method, bits), bits) for method in RANGE_METHODS
    }
    assert errors["adaptive"] == min(errors.values())


def test_adaptive_range_keeps_the_short_side_of_a_gelu():
    x = torch.nn.functional.gelu(3 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)))
    low, high = activation_range(histogram(x), "adaptive", 4)
    mse_low, mse_high = activation_range(histogram(x), "mse", 4)
    assert high < float(x.max())
    assert squared_error(x, (low, high), 4) <= squared_error(x, (mse_low, mse_high), 4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fewer_codes_cover_a_narrower_range(bits):
    h = histogram(torch.randn(50_000, generator=torch.Generator().manual_seed(0)))
    for method in ("mse", "entropy", "adaptive"):
        narrow, wide = activation_range(h, method, bits), activation_range(h, method, 8)
        assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_entropy_range_is_that_of_the_values_themselves():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).relu()
    grid = Grid(8, symmetric=False)
    _, high = range_of(x[None], grid, "entropy")
    assert activation_range(histogram(x), "entropy", 8)[1] == pytest.approx(float(high), rel=0.05)


def test_entropy_of_few_values_is_minmax():
    h = histogram([-1.0, 2.0, 100.0])
    assert activation_range(h, "entropy") == activation_range(h, "minmax")


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3e38, 1e-38])
def test_constant_activations_have_a_range(method, value):
    low, high = activation_range(histogram([value] * 5000), method)
    assert (low, high) == pytest.approx((min(value, 0.0), max(value, 0.0)), rel=1e-3)


@given(st.floats(-1e6, 0), st.floats(0, 1e6), st.integers(2, 8))
def test_code_parameters_stay_within_the_codes(low, high, bits):
    scale, zero = code_parameters(low, high, bits)
    assert scale > 0
    assert 0 <= zero < 2**bits
