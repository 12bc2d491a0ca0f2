"""Errors of weights and outputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.measure.error import (
    deviation,
    float_weight,
    folded,
    input_quantizers,
    layer_errors,
    sqnr_db,
    weight_sqnr_db,
)
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.affine import AffineForm
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.testing.strategies import batches_for, perceptron, residual_network

EIGHT_BITS = Plan("perceptron", (Decision("weight_only", ("0", "4"), Stage.QUANTIZE),))


def test_sqnr_is_ten_log_of_signal_over_noise():
    signal = torch.tensor([3.0, 4.0])
    assert sqnr_db(signal, signal + torch.tensor([0.3, 0.4])) == pytest.approx(20.0, rel=1e-5)


def test_uniform_rounding_loses_six_decibels_a_bit():
    x = torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for bits in (4, 6, 8):
        model = Model("m", nn.Sequential(nn.Linear(100_000, 1)), {"input": torch.zeros(1, 100_000)})
        model.module[0].weight.data = x
        plan = Plan("m", (Decision("weight_only", ("0",), Stage.QUANTIZE, {"bits": bits}),))
        (found,) = weight_sqnr_db(apply(model, plan).module).values()
        assert found == pytest.approx(20 * math.log10(2**bits - 2), abs=0.2)


def test_sqnr_without_signal_or_noise_is_none():
    assert sqnr_db(torch.zeros(2), torch.ones(2)) is None
    assert sqnr_db(torch.ones(2), torch.ones(2)) is None


def test_deviation_is_what_its_formulas_say():
    generator = torch.Generator().manual_seed(0)
    exact, rounded = torch.randn(2, 50, generator=generator)
    found, difference = deviation(exact, rounded), (exact - rounded).double()
    assert found.mse == pytest.approx(float(difference.square().mean()))
    assert found.max_abs == pytest.approx(float(difference.abs().max()))
    assert found.relative == pytest.approx(float(difference.norm() / exact.double().norm()))
    assert found.sqnr_db == pytest.approx(-20 * math.log10(found.relative))
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(exact, rounded, dim=0)), abs=1e-6)


def test_deviation_of_nothing_is_none_and_of_equal_values_zero():
    assert deviation(torch.zeros(0), torch.zeros(0)) is None
    assert deviation(torch.ones(2), torch.tensor([1.0, torch.nan])) is None
    same = deviation(torch.ones(2), torch.ones(2))
    assert (same.mse, same.max_abs, same.relative, same.sqnr_db) == (0, 0, 0, None)
    assert same.cosine == pytest.approx(1)
    silent = deviation(torch.zeros(2), torch.ones(2))
    assert (silent.relative, silent.sqnr_db, silent.cosine) == (None, None, None)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20))
def test_deviation_is_finite_for_finite_values(pairs):
    found = deviation(*torch.tensor(pairs).T)
    numbers = [found.mse, found.max_abs, found.relative, found.sqnr_db, found.cosine]
    assert all(math.isfinite(number) for number in numbers if number is not None)
    assert found.cosine is None or -1 <= found.cosine <= 1


def test_output_errors_are_measured_over_all_batches():
    model = perceptron()
    result = apply(model, EIGHT_BITS)
    batches = batches_for(model, count=2)
    found = layer_errors(model, result, batches)
    x = torch.cat([batch["input"] for batch in batches])
    with torch.no_grad():
        exact, rounded = model.module[0](x), result.module[0](x)
    assert found["0"].output.mse == pytest.approx(deviation(exact, rounded).mse, rel=1e-5)
    assert found["0"].output_alone == found["0"].output
    assert found["4"].output.sqnr_db < found["0"].output.sqnr_db


def test_alone_a_layer_reads_what_it_reads_in_the_float_model():
    model = perceptron()
    found = layer_errors(model, apply(model, EIGHT_BITS), batches_for(model))
    last = apply(model, Plan("perceptron", (Decision("weight_only", ("4",), Stage.QUANTIZE),)))
    wanted = layer_errors(model, last, batches_for(model))
    assert found["4"].output_alone == wanted["4"].output
    assert found["4"].output_alone.mse < found["4"].output.mse


def test_outputs_are_compared_as_they_are_before_an_activation_in_place():
    torch.manual_seed(0)
    layers = (nn.Linear(12, 32), nn.ReLU(inplace=True), nn.Linear(32, 4))
    model = Model("in place", nn.Sequential(*layers), {"input": torch.randn(1, 12)})
    plan = Plan("m", (Decision("weight_only", ("0",), Stage.QUANTIZE, {"bits": 4}),))
    result, (batch, *_) = apply(model, plan), batches_for(model)
    with torch.no_grad():
        exact, rounded = model.module[0](batch["input"]), result.module[0](batch["input"])
    found = layer_errors(model, result, [batch])
    assert found["0"].output.mse == pytest.approx(deviation(exact, rounded).mse, rel=1e-5)


def test_a_weight_is_compared_with_that_of_the_folded_model():
    model = residual_network()
    plan = Plan("residual", (Decision("weight_only", ("stem",), Stage.QUANTIZE, {"bits": 4}),))
    compressed, reference = apply(model, plan), folded(model)
    wanted = deviation(reference.module.stem.weight, compressed.module.stem.encoding().decode())
    assert layer_errors(reference, compressed, batches_for(model))["stem"].weight == wanted


def test_a_weight_that_a_technique_has_overwritten_is_compared_with_the_original():
    model = perceptron()
    compressed = apply(model, EIGHT_BITS)
    layer = compressed.module[0]
    layer.layer.weight = nn.Parameter(layer.encoding().decode())  # as error-compensating rounding leaves it
    found = layer_errors(model, compressed, batches_for(model))["0"]
    assert found.weight.sqnr_db == weight_sqnr_db(apply(model, EIGHT_BITS).module)["0"]


def test_smoothed_weights_are_compared_in_units_of_what_is_stored():
    model = perceptron()
    plan = Plan("perceptron", (Decision("dynamic_int8", ("0",), Stage.QUANTIZE),))
    compressed = apply(model, plan)
    layer, factors = compressed.module[0], torch.linspace(0.5, 2, 12)
    with torch.no_grad():
        layer.layer.weight.mul_(factors)
    layer.input_factors = 1 / factors
    layer.frozen = AffineEncoder(AffineForm())(layer.layer.weight)
    assert torch.allclose(float_weight(model, "0", layer), layer.layer.weight, rtol=1e-6)
    assert layer_errors(model, compressed, batches_for(model))["0"].weight.sqnr_db > 35


def test_a_layer_that_reads_codes_is_compared_in_their_units():
    model = residual_network()
    batches = batches_for(model)
    compressed = apply(model, plan_for(profile(model), "static_int8", {}), batches)
    found = layer_errors(folded(model), compressed, batches)["stem"]
    assert found.weight.sqnr_db > 35
    assert found.output_alone.sqnr_db > 35


def test_rounding_of_what_a_layer_reads_is_part_of_its_error_alone():
    model = residual_network()
    batches = batches_for(model)
    compressed = apply(model, plan_for(profile(model), "static_int8", {}), batches)
    readers = input_quantizers(compressed.module)
    assert readers["stem"] == [None]  # it rounds its own input
    assert isinstance(readers["body"][0], StaticQuantizer)
    found = layer_errors(folded(model), compressed, batches)
    weights_only = apply(model, plan_for(profile(model), "weight_only", {}), batches)
    without = layer_errors(folded(model), weights_only, batches)
    assert found["head"].output_alone.mse > 1.2 * without["head"].output_alone.mse


def test_layers_that_the_reference_lacks_are_left_out():
    model = perceptron()
    other = Model("other", nn.Sequential(nn.Linear(12, 4)), model.example_inputs)
    assert set(layer_errors(other, apply(model, EIGHT_BITS), batches_for(model))) == {"0"}
