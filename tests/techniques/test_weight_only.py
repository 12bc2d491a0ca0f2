"""Weight-only quantization with every setting."""

from __future__ import annotations

import itertools

import pytest
import torch

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError
from flyweight.measure.error import weight_sqnr_db
from flyweight.measure.profile import profile
from flyweight.techniques.weight_only import WeightOnly
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.ranges import RANGE_METHODS
from flyweight.testing.strategies import (
    NETWORKS,
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
)


def plan_of(model, **settings):
    layers = tuple(profile(model).by_name)
    return Plan(model.name, (Decision("weight_only", layers, Stage.QUANTIZE, settings),))


@pytest.mark.parametrize(
    ("bits", "symmetric", "granularity", "method"),
    list(itertools.product((2, 3, 4, 8), (True, False), ("tensor", "channel", "group"), RANGE_METHODS)),
)
def test_every_setting_is_as_predicted(bits, symmetric, granularity, method):
    settings = {
        "bits": bits,
        "symmetric": symmetric,
        "granularity": granularity,
        "group_size": 5,
        "range_method": method,
    }
    result = apply(perceptron(), plan_of(perceptron(), **settings))  # raises ContractError otherwise
    assert {layer.code_bits for layer in profile(result).layers} == {bits}


@pytest.mark.parametrize("make", [residual_network, signal_network, text_network])
def test_all_kinds_of_layer_are_taken(make):
    result = apply(make(), plan_of(make(), bits=4, granularity="group", group_size=7))
    assert all(layer.code_bits == 4 for layer in profile(result).layers)


@pytest.mark.parametrize("network", NETWORKS)
def test_more_bits_are_closer(network):
    model = NETWORKS[network]()
    errors = []
    for bits in (2, 4, 6, 8):
        result = apply(model, plan_of(model, bits=bits))
        errors.append(float((result.outputs()[0] - model.outputs()[0]).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03 * float(model.outputs()[0].norm())


def test_finer_groups_are_closer():
    model = perceptron()
    mean = lambda found: sum(found.values()) / len(found)  # noqa: E731
    by = {
        granularity: mean(
            weight_sqnr_db(apply(model, plan_of(model, bits=4, granularity=granularity, group_size=4)).module)
        )
        for granularity in ("tensor", "channel", "group")
    }
    assert by["tensor"] < by["channel"] < by["group"]


def test_activations_stay_float():
    layers = profile(apply(perceptron(), plan_of(perceptron()))).layers
    assert {(layer.activation_bits, layer.activation_mode) for layer in layers} == {(32, "float")}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 9}, "bits must be in 2..8 or 16, got 9"),
        ({"bits": 1}, "bits must be in 2..8 or 16, got 1"),
        ({"bits": 4.0}, "bits must be of type int"),
        ({"bits": True}, "bits must be of type int"),
        ({"symmetric": 1}, "symmetric must be of type bool"),
        ({"granularity": "row"}, "granularity must be one of tensor, channel, group"),
        ({"range_method": "median"}, "range_method must be one of"),
        ({"granularity": "group", "group_size": 1}, "group_size must be at least 2"),
        ({"colour": "red"}, "has no setting 'colour'"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("weight_only", ("0",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        WeightOnly().predict(profile(perceptron()), decision)
    with pytest.raises(InputError, match=reason):
        apply(perceptron(), Plan("perceptron", (decision,)))


def test_unknown_layer_is_named():
    with pytest.raises(InputError, match="names layer '9'"):
        apply(perceptron(), Plan("perceptron", (Decision("weight_only", ("9",), Stage.QUANTIZE),)))


def test_decision_of_another_stage_is_refused():
    with pytest.raises(InputError, match="belongs to stage quantize"):
        apply(perceptron(), Plan("perceptron", (Decision("weight_only", ("0",), Stage.SPARSIFY),)))


def test_bias_is_untouched():
    model = perceptron()
    result = apply(model, plan_of(model, bits=2))
    assert torch.equal(model.module[0].bias, result.module[0].layer.bias)


def test_adaptive_ranges_follow_what_the_layer_reads():
    """Outputs are closer than with any range that does not know the inputs."""
    model = perceptron()
    scales = torch.logspace(-2, 1, 12)
    batches = [{"input": torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) * scales}]
    wanted = model.module[0](batches[0]["input"]).detach()
    errors = {}
    for method in RANGE_METHODS:
        decision = Decision("weight_only", ("0",), Stage.QUANTIZE, {"bits": 3, "range_method": method})
        layer = apply(model, Plan(model.name, (decision,)), batches).module[0]
        errors[method] = float((layer(batches[0]["input"]).detach() - wanted).square().sum())
    assert errors["adaptive"] == min(errors.values())
    assert errors["adaptive"] < errors["mse"]


@pytest.mark.parametrize("seed", range(4))
def test_adaptive_ranges_are_closer_where_all_inputs_are_positive_and_errors_add_up(seed):
    model = perceptron(seed)
    batches = batches_for(model, seed=seed)
    errors = {}
    for method in ("minmax", "mse", "adaptive"):
        settings = {"bits": 4, "range_method": method}
        decision = Decision("weight_only", ("2",), Stage.QUANTIZE, settings)
        layer = apply(model, Plan(model.name, (decision,)), batches).module[2]
        read = [model.module[:2](batch["input"]) for batch in batches]
        wanted = [model.module[2](x) for x in read]
        errors[method] = sum(
            float((layer(x) - w).detach().square().sum()) for x, w in zip(read, wanted, strict=True)
        )
    assert errors["adaptive"] < 0.9 * min(errors["minmax"], errors["mse"])


def test_adaptive_ranges_without_data_are_those_of_least_error():
    model = perceptron()
    decision = Decision("weight_only", ("0",), Stage.QUANTIZE, {"bits": 3, "range_method": "adaptive"})
    layer = apply(model, Plan(model.name, (decision,))).module[0]
    weight = model.module[0].weight
    wanted = encode_affine(weight, AffineForm(bits=3, range_method="adaptive"))
    assert torch.equal(layer.weight, wanted.decode())
