"""Narrower floats as a technique."""

from __future__ import annotations

import pytest
import torch

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.error import weight_sqnr_db
from flyweight.measure.profile import profile
from flyweight.techniques.float_storage import FloatStorage
from flyweight.tensors.float_formats import FLOAT_FORMATS
from flyweight.testing.strategies import perceptron, residual_network, signal_network, text_network


def plan_of(model, name):
    layers = tuple(profile(model).by_name)
    return Plan(model.name, (Decision("float_storage", layers, Stage.QUANTIZE, {"format": name}),))


@pytest.mark.parametrize("name", FLOAT_FORMATS)
@pytest.mark.parametrize("make", [perceptron, residual_network, signal_network, text_network])
def test_all_kinds_of_layer_are_taken_as_predicted(make, name):
    result = apply(make(), plan_of(make(), name))  # raises ContractError otherwise
    assert all(layer.encoding == name for layer in profile(result).layers)


@pytest.mark.parametrize(("name", "stored"), [("float16", 24 * 32 * 2), ("float8_e5m2", 24 * 32 + 24 * 4)])
def test_a_layer_takes_its_floats_and_eight_bits_a_scale_a_row(name, stored):
    layer = profile(apply(perceptron(), plan_of(perceptron(), name))).by_name["2"]
    assert layer.storage_bytes == stored
    assert layer.group_size == (None if name == "float16" else 32)


def test_more_digits_are_closer():
    model = perceptron()
    closeness = [
        weight_sqnr_db(apply(model, plan_of(model, name)).module)["2"]
        for name in ("float8_e5m2", "float8_e4m3fn", "bfloat16", "float16")
    ]
    assert closeness == sorted(closeness)
    assert closeness[-1] > 70


def test_a_layer_too_large_for_float16_is_named():
    model = perceptron()
    with torch.no_grad():
        model.module[2].weight[0, 0] = 1e5
    with pytest.raises(UnsupportedError, match=r"layer '2': weights up to 100000 .* set format=bfloat16"):
        apply(model, plan_of(model, "float16"))
    apply(model, plan_of(model, "bfloat16"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"format": "float4"}, "format must be one of float16, bfloat16, float8_e4m3fn, float8_e5m2"),
        ({"bits": 16}, "has no setting 'bits'; known: format"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("float_storage", ("0",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        FloatStorage().predict(profile(perceptron()), decision)
    with pytest.raises(InputError, match=reason):
        apply(perceptron(), Plan("perceptron", (decision,)))
