"""Normal floats as a technique."""

from __future__ import annotations

import itertools

import pytest

from flyweight.apply import apply
from flyweight.core.layer import CodebookProfile
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError
from flyweight.measure.error import weight_sqnr_db
from flyweight.measure.profile import profile
from flyweight.techniques.normal_float import NormalFloat
from flyweight.testing.strategies import perceptron, residual_network, signal_network, text_network


def plan_of(model, **settings):
    layers = tuple(profile(model).by_name)
    return Plan(model.name, (Decision("normal_float", layers, Stage.QUANTIZE, settings),))


@pytest.mark.parametrize(("bits", "granularity"), list(itertools.product((2, 3, 4, 8), ("channel", "group"))))
def test_every_setting_is_as_predicted(bits, granularity):
    settings = {"bits": bits, "granularity": granularity, "group_size": 5}
    result = apply(perceptron(), plan_of(perceptron(), **settings))  # raises ContractError otherwise
    assert {layer.encoding for layer in profile(result).layers} == {"normal_float"}


@pytest.mark.parametrize("make", [residual_network, signal_network, text_network])
def test_all_kinds_of_layer_are_taken(make):
    result = apply(make(), plan_of(make(), group_size=7))
    assert all(layer.encoding == "normal_float" for layer in profile(result).layers)


def test_a_layer_takes_its_codes_and_scales_and_no_table():
    layer = profile(apply(perceptron(), plan_of(perceptron(), group_size=16))).by_name["2"]
    assert layer.storage_bytes == 24 * 32 / 2 + 24 * 2 * 4
    assert layer.codebook == CodebookProfile(entries=16, tables=0)
    assert (layer.code_bits, layer.group_size) == (None, 16)


def test_more_bits_are_closer():
    model = perceptron()
    for layer in ("0", "2", "4"):
        closeness = [
            weight_sqnr_db(apply(model, plan_of(model, bits=bits)).module)[layer] for bits in range(2, 9)
        ]
        assert closeness == sorted(closeness)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 9}, "bits must be in 2..8, got 9"),
        ({"granularity": "tensor"}, "granularity must be one of channel, group"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"symmetric": True}, "has no setting 'symmetric'"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("normal_float", ("0",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        NormalFloat().predict(profile(perceptron()), decision)
    with pytest.raises(InputError, match=reason):
        apply(perceptron(), Plan("perceptron", (decision,)))
