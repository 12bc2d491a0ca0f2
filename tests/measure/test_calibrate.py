"""Histograms, and the ranges found from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.measure.calibrate import MAX_BINS, Histogram, activation_range, observe, uint8_parameters
from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.tensors.ranges import MSE_SHRINK, MSE_STEPS
from flyweight.testing.strategies import batches_for, perceptron

values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50)


def histogram(*parts):
    result = Histogram()
    for part in parts:
        result.add(torch.as_tensor(part, dtype=torch.float32))
    return result


def as_pairs(h):
    return {round(float(c), 12): int(n) for c, n in zip(h.centres(), h.counts, strict=True) if n}


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
        scale, zero = uint8_parameters(low * ratio, high * ratio)
        codes = ((x / scale).round() + zero).clamp(0, 255)
        return float(((codes - zero) * scale - x).double().square().sum())

    errors = [error(1 - step * MSE_SHRINK) for step in range(MSE_STEPS)]
    chosen = activation_range(histogram(x), "mse")[1] / high
    assert error(chosen) <= min(errors) * 1.02
    assert chosen < 1


def test_range_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no value was seen"):
        activation_range(Histogram(), "minmax")


@given(st.floats(-1e6, 0), st.floats(0, 1e6))
def test_uint8_parameters_cover_the_range_and_hold_zero(low, high):
    scale, zero = uint8_parameters(low, high)
    assert scale > 0
    assert 0 <= zero <= 255
    assert -zero * scale <= low + scale
    assert (255 - zero) * scale >= high - scale


def test_observe_sees_every_batch():
    model = perceptron()
    graph = capture(model)
    (source,) = [node for node in graph.graph.nodes if node.op == "placeholder"]
    batches = batches_for(model, count=3)
    seen = observe(graph, batches, [source])[source]
    x = torch.cat([batch["input"] for batch in batches])
    assert (seen.low, seen.high) == (float(x.min()), float(x.max()))
    assert int(seen.counts.sum()) == x.numel()


def test_overflow_is_told_in_one_sentence_that_names_the_layer():
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(4, 4)

        def forward(self, input):
            return torch.exp(self.wide(input) + 1000).clamp(max=1)

    graph = capture(Model("m", Overflowing(), {"input": torch.randn(1, 4)}))
    (exponential,) = [n for n in graph.graph.nodes if n.name == "exp"]
    with pytest.raises(UnsupportedError, match="of 'exp' after 'wide' are NaN or infinite") as error:
        observe(graph, [{"input": torch.randn(2, 4)}], [exponential])
    assert "\n" not in str(error.value)


def test_observe_needs_a_batch():
    with pytest.raises(ValueError, match="at least one batch"):
        observe(capture(perceptron()), [], [])
