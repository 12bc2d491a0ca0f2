"""Shapes of rounding errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flyweight.measure.fits import BINS, SAMPLES, error_histogram, fits
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.binary import BinaryEncoder, BinaryForm


def drawn(shape, count=20_000):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, count, generator=generator, dtype=torch.float64)
    return {
        "uniform": first - 0.5,
        "triangular": first - second,
        "gaussian": torch.randn(count, generator=generator, dtype=torch.float64),
    }[shape]


def weight_of(rows=64, columns=600):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shape", "spread"), [("uniform", 0.5), ("triangular", 1.0), ("gaussian", 1.0)])
def test_errors_are_known_by_their_shape(shape, spread):
    sample = 3 * drawn(shape) + 7
    best, second, _ = fits(sample, centre=float(sample.mean()), deviation=float(sample.std()))
    assert (best.shape, best.centre) == (shape, pytest.approx(7, abs=0.1))
    assert best.spread == pytest.approx(3 * spread, rel=0.02)
    assert best.distance < 0.01 < second.distance


@pytest.mark.parametrize(
    ("shape", "reference"),
    [
        ("uniform", lambda centre, sd: stats.uniform(centre - 3**0.5 * sd, 12**0.5 * sd)),
        ("triangular", lambda centre, sd: stats.triang(0.5, centre - 6**0.5 * sd, 24**0.5 * sd)),
        ("gaussian", stats.norm),
    ],
)
def test_the_distance_is_that_of_kolmogorov_and_smirnov(shape, reference):
    sample = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 2
    centre, deviation = float(sample.mean()), float(sample.std())
    found = {fit.shape: fit.distance for fit in fits(sample, centre=centre, deviation=deviation)}
    wanted = stats.kstest(sample.numpy(), reference(centre, deviation).cdf).statistic
    assert found[shape] == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_distances_are_fractions_and_the_best_comes_first(values):
    sample = torch.tensor(values, dtype=torch.float64)
    found = fits(sample, centre=float(sample.mean()), deviation=float(sample.std(unbiased=False)))
    distances = [fit.distance for fit in found]
    assert distances == sorted(distances)
    assert all(0 <= distance <= 1 for distance in distances)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_rounding_to_nearest_is_uniform_over_a_step(granularity):
    form = AffineForm(bits=6, granularity=granularity, group_size=50 * (granularity == "group"))
    weight = weight_of()
    found = error_histogram(weight, encode_affine(weight, form))
    assert found.unit == "steps"
    assert found.bound <= 0.5
    best = found.fits[0]
    assert (best.shape, best.spread) == ("uniform", pytest.approx(0.5, abs=0.02))


def test_every_error_is_counted_once():
    weight = weight_of()
    found = error_histogram(weight, encode_affine(weight, AffineForm(bits=4)))
    assert len(found.counts) == BINS
    assert sum(found.counts) + found.outside == weight.numel()
    assert 0 < found.outside < 0.003 * weight.numel()


def test_removed_weights_are_not_counted():
    weight = weight_of()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.25
    found = error_histogram(weight * mask, encode_affine(weight, AffineForm(bits=4), mask))
    assert sum(found.counts) + found.outside == int(mask.sum())


def test_codes_without_even_steps_have_errors_in_units_of_the_weight():
    weight = weight_of()
    found = error_histogram(weight, BinaryEncoder(BinaryForm())(weight, None))
    assert found.unit == "weight"
    assert found.bound > 1


def test_weights_on_the_grid_have_no_errors():
    exact = encode_affine(weight_of(), AffineForm(bits=4))
    assert error_histogram(exact.decode(), exact) is None


def test_one_wrong_weight_among_exact_ones_is_shown():
    exact = encode_affine(weight_of(), AffineForm(bits=4))
    weight = exact.decode()
    weight[0, 0] += 0.1
    found = error_histogram(weight, exact)
    assert sum(found.counts) + found.outside == weight.numel()
    assert len(found.fits) == 3


def test_errors_of_a_large_weight_are_the_same_each_time():
    weight = weight_of(rows=300)
    assert weight.numel() > SAMPLES
    encoding = encode_affine(weight, AffineForm(bits=3))
    assert error_histogram(weight, encoding) == error_histogram(weight, encoding)
