"""Codebooks as a technique."""

from __future__ import annotations

import itertools

import pytest
import torch

from flyweight.apply import apply
from flyweight.core.layer import CodebookProfile
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError
from flyweight.measure.error import weight_sqnr_db
from flyweight.measure.profile import profile
from flyweight.techniques.codebook import Codebook
from flyweight.tensors.encoded import encoded_layers
from flyweight.tensors.kmeans import STARTS
from flyweight.testing.strategies import (
    NETWORKS,
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
    tied_network,
)


def plan_of(model, **settings):
    layers = tuple(profile(model).by_name)
    return Plan(model.name, (Decision("codebook", layers, Stage.QUANTIZE, settings),))


@pytest.mark.parametrize(
    ("bits", "granularity", "start"), list(itertools.product((2, 3, 8), ("tensor", "channel"), STARTS))
)
def test_every_setting_is_as_predicted(bits, granularity, start):
    settings = {"bits": bits, "granularity": granularity, "start": start}
    result = apply(perceptron(), plan_of(perceptron(), **settings))  # raises ContractError otherwise
    assert {layer.encoding for layer in profile(result).layers} == {"codebook"}


@pytest.mark.parametrize("make", [residual_network, signal_network, text_network])
def test_all_kinds_of_layer_are_taken_with_what_matters_measured(make):
    result = apply(make(), plan_of(make(), bits=3, importance="inputs"), batches_for(make()))
    assert all(layer.encoding == "codebook" for layer in profile(result).layers)


def test_a_layer_takes_its_codes_and_tables():
    layer = profile(apply(perceptron(), plan_of(perceptron(), bits=3))).by_name["2"]
    assert layer.storage_bytes == 24 * 32 * 3 / 8 + 24 * 8 * 4
    assert layer.codebook == CodebookProfile(entries=8, tables=24)
    assert (layer.code_bits, layer.group_size) == (None, None)


def test_a_table_has_no_more_entries_than_there_are_weights():
    layer = profile(apply(perceptron(), plan_of(perceptron(), bits=8))).by_name["0"]
    assert layer.codebook == CodebookProfile(entries=12, tables=32)


@pytest.mark.parametrize("network", NETWORKS)
def test_more_bits_are_closer(network):
    model = NETWORKS[network]()
    errors = []
    for bits in (2, 4, 6):
        result = apply(model, plan_of(model, bits=bits, granularity="tensor"))
        errors.append(float((result.outputs()[0] - model.outputs()[0]).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * float(model.outputs()[0].norm())


def test_a_table_a_row_is_closer_than_one_for_all():
    model = perceptron()
    mean = {}
    for granularity in ("tensor", "channel"):
        found = weight_sqnr_db(apply(model, plan_of(model, bits=2, granularity=granularity)).module)
        mean[granularity] = sum(found.values()) / len(found)
    assert mean["tensor"] < mean["channel"]


def test_counting_what_matters_brings_outputs_closer():
    model = perceptron()
    loud = torch.where(torch.arange(12) < 3, 10.0, 0.3)  # three inputs carry nearly everything
    batches = [{"input": batch["input"] * loud} for batch in batches_for(model, count=4, size=32)]
    error = {}
    for importance in ("uniform", "inputs"):
        plan = Plan(
            model.name, (Decision("codebook", ("0",), Stage.QUANTIZE, {"bits": 2, "importance": importance}),)
        )
        result = apply(model, plan, batches)
        error[importance] = float(
            (result.outputs(batches[0])[0] - model.outputs(batches[0])[0]).square().sum()
        )
    assert error["inputs"] < 0.5 * error["uniform"]


def test_layers_that_share_a_weight_share_its_table():
    model = tied_network()
    result = apply(model, plan_of(model, importance="inputs"), batches_for(model))
    assert profile(result).by_name["head"].tied_to == "table"


def test_importance_without_data_is_refused():
    with pytest.raises(InputError, match="codebook needs calibration data to know what matters: give --data"):
        apply(perceptron(), plan_of(perceptron(), importance="inputs"))


def test_the_fitted_table_stays_while_weights_change():
    result = apply(perceptron(), plan_of(perceptron(), bits=2))
    for _, layer in encoded_layers(result.module):
        before = layer.frozen.table
        layer.frozen = None
        layer.layer.weight.data += 0.1
        assert torch.equal(layer.encoding().table, before)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 9}, "bits must be in 2..8, got 9"),
        ({"bits": 4.0}, "bits must be of type int"),
        ({"granularity": "group"}, "granularity must be one of tensor, channel"),
        ({"start": "random"}, "start must be one of linear, density, optimal"),
        ({"importance": "magnitude"}, "importance must be one of uniform, inputs"),
        ({"colour": "red"}, "has no setting 'colour'"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("codebook", ("0",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        Codebook().predict(profile(perceptron()), decision)
    with pytest.raises(InputError, match=reason):
        apply(perceptron(), Plan("perceptron", (decision,)))
