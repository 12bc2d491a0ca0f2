"""Binary and ternary weights as a technique."""

from __future__ import annotations

import itertools

import pytest

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError
from flyweight.measure.agreement import relative_error
from flyweight.measure.error import weight_sqnr_db
from flyweight.measure.profile import profile
from flyweight.techniques.binary import METHODS, Binary
from flyweight.testing.strategies import (
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
)


def plan_of(model, **settings):
    layers = tuple(profile(model).by_name)
    return Plan(model.name, (Decision("binary", layers, Stage.QUANTIZE, settings),))


@pytest.mark.parametrize(
    ("method", "granularity"), [*itertools.product(METHODS[::2], ("channel", "group")), ("sign", "channel")]
)
def test_every_setting_is_as_predicted(method, granularity):
    settings = {"method": method, "granularity": granularity, "group_size": 5}
    result = apply(perceptron(), plan_of(perceptron(), **settings))  # raises ContractError otherwise
    encoding = "ternary" if method == "ternary" else "binary"
    assert {layer.encoding for layer in profile(result).layers} == {encoding}


@pytest.mark.parametrize("make", [residual_network, signal_network, text_network])
def test_all_kinds_of_layer_are_taken(make):
    result = apply(make(), plan_of(make(), granularity="group", group_size=7))
    assert all(layer.encoding == "binary" for layer in profile(result).layers)


def test_a_binary_layer_takes_a_bit_a_weight_and_a_scale_a_row():
    layer = profile(apply(perceptron(), plan_of(perceptron()))).by_name["2"]
    assert layer.storage_bytes == 24 * 32 / 8 + 24 * 4
    assert (layer.group_size, layer.code_bits) == (32, None)


def test_ternary_weights_are_closer_than_binary_and_both_than_signs():
    model = perceptron()
    mean = {}
    for method in METHODS:
        found = weight_sqnr_db(apply(model, plan_of(model, method=method)).module)
        mean[method] = sum(found.values()) / len(found)
    assert mean["sign"] < mean["binary"] < mean["ternary"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "quaternary"}, "method must be one of binary, sign, ternary"),
        ({"granularity": "tensor"}, "granularity must be one of channel, group"),
        ({"granularity": "group", "group_size": 1}, "group_size must be at least 2"),
        ({"granularity": "group", "group_size": 0}, "group_size must be at least 2"),
        ({"method": "sign", "granularity": "group"}, "bare signs have no scales"),
        ({"rounding": "up"}, "rounding must be one of auto, nearest, compensated"),
        ({"bits": 1}, "has no setting 'bits'"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("binary", ("0",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        Binary().predict(profile(perceptron()), decision)
    with pytest.raises(InputError, match=reason):
        apply(perceptron(), Plan("perceptron", (decision,)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [perceptron, residual_network, signal_network, text_network])
def test_signs_that_compensate_keep_more_of_the_outputs(make, method):
    model = make()
    batches = batches_for(model, count=4, size=32)
    error = {}
    for rounding in ("nearest", "compensated", "auto"):
        result = apply(make(), plan_of(make(), method=method, rounding=rounding), batches)
        found = [relative_error(model.outputs(batch), result.outputs(batch)) for batch in batches]
        error[rounding] = sum(found) / len(found)
    assert error["compensated"] < error["nearest"]
    assert error["auto"] == error["compensated"]


def test_compensation_without_data_is_refused():
    with pytest.raises(InputError, match=r"binary with rounding=compensated needs calibration data.*--data"):
        apply(perceptron(), plan_of(perceptron(), rounding="compensated"))
