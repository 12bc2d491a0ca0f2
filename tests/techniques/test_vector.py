"""Vector quantization as a technique."""

from __future__ import annotations

import itertools

import pytest

from flyweight.apply import apply
from flyweight.core.layer import CodebookProfile
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError
from flyweight.measure.error import weight_sqnr_db
from flyweight.measure.profile import profile
from flyweight.techniques.vector import Vector
from flyweight.testing.strategies import (
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
    tied_network,
)


def plan_of(model, **settings):
    layers = tuple(profile(model).by_name)
    return Plan(model.name, (Decision("vector", layers, Stage.QUANTIZE, settings),))


@pytest.mark.parametrize(("bits", "dimension"), list(itertools.product((2, 5, 12), (2, 5, 40))))
def test_every_setting_is_as_predicted(bits, dimension):
    plan = plan_of(perceptron(), bits=bits, dimension=dimension)
    result = apply(perceptron(), plan)  # raises ContractError otherwise
    assert {layer.encoding for layer in profile(result).layers} == {"vector"}


@pytest.mark.parametrize("make", [residual_network, signal_network, text_network])
def test_all_kinds_of_layer_are_taken_with_what_matters_measured(make):
    result = apply(make(), plan_of(make(), bits=5, importance="inputs"), batches_for(make()))
    assert all(layer.encoding == "vector" for layer in profile(result).layers)


def test_a_layer_takes_its_codes_and_one_table():
    layer = profile(apply(perceptron(), plan_of(perceptron(), bits=6, dimension=4))).by_name["2"]
    assert layer.storage_bytes == 24 * 8 * 6 / 8 + 64 * 4 * 4
    assert layer.codebook == CodebookProfile(entries=64, tables=1, dimension=4)
    assert (layer.code_bits, layer.group_size) == (None, None)


def test_more_bits_and_shorter_vectors_are_closer():
    model = residual_network()

    def closeness(**settings):
        return weight_sqnr_db(apply(model, plan_of(model, **settings)).module)["body"]

    assert closeness(bits=3) < closeness(bits=5) < closeness(bits=7)
    assert closeness(bits=4, dimension=6) < closeness(bits=4, dimension=3) < closeness(bits=4, dimension=2)


def test_layers_that_share_a_weight_share_its_table():
    model = tied_network()
    result = apply(model, plan_of(model, bits=4, importance="inputs"), batches_for(model))
    assert profile(result).by_name["head"].tied_to == "table"


def test_importance_without_data_is_refused():
    with pytest.raises(InputError, match="vector needs calibration data to know what matters: give --data"):
        apply(perceptron(), plan_of(perceptron(), importance="inputs"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 13}, "bits must be in 2..12, got 13"),
        ({"dimension": 1}, "dimension must be at least 2"),
        ({"dimension": 4.0}, "dimension must be of type int"),
        ({"importance": "magnitude"}, "importance must be one of uniform, inputs"),
        ({"group_size": 32}, "has no setting 'group_size'"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("vector", ("0",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        Vector().predict(profile(perceptron()), decision)
    with pytest.raises(InputError, match=reason):
        apply(perceptron(), Plan("perceptron", (decision,)))
