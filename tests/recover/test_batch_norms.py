"""Batch norms put back, and folded: outputs stay, codes stay, negative factors included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.recover.batch_norms import normalised, put_back, take_out
from flyweight.recover.grids import with_factors
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.binary import BinaryForm, encode_binary
from flyweight.tensors.codebook import CodebookForm, encode_codebook, fit_table
from flyweight.tensors.encoded import EncodedLayer
from flyweight.tensors.plain import PlainWeight
from tests.recover.networks import (
    calibration,
    compressed,
    convolutional,
    perceptron,
    plan_for,
    same_outputs,
)

WEIGHT = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
FACTORS = torch.tensor([1.0, -1.0, 0.5, -2.0, 1e-3, 3.0])
FORMS = {
    "symmetric": encode_affine(WEIGHT, AffineForm(bits=3)),
    "asymmetric": encode_affine(WEIGHT, AffineForm(bits=2, symmetric=False)),
    "by group": encode_affine(WEIGHT, AffineForm(bits=4, granularity="group", group_size=8)),
    "binary": encode_binary(WEIGHT, BinaryForm()),
    "ternary by group": encode_binary(WEIGHT, BinaryForm(levels="ternary", group_size=5)),
    "codebook": encode_codebook(WEIGHT, CodebookForm(bits=3), fit_table(WEIGHT, CodebookForm(bits=3))),
    "plain": PlainWeight(WEIGHT),
}


@pytest.mark.parametrize("name", FORMS)
def test_rows_take_factors_of_either_sign_exactly(name: str):
    stored = FORMS[name]
    scaled = with_factors(stored, FACTORS)
    wanted = stored.decode() * FACTORS.reshape(-1, 1, 1, 1)
    assert torch.allclose(scaled.decode(), wanted, rtol=1e-6, atol=0)
    assert scaled.nbytes == stored.nbytes


@pytest.mark.parametrize(
    "stored",
    [
        encode_affine(WEIGHT, AffineForm(bits=4, granularity="tensor")),
        encode_binary(WEIGHT, BinaryForm(scaled=False)),
    ],
)
def test_what_has_no_scale_a_row_takes_no_factors(stored):
    with pytest.raises(TypeError, match="no scale a row"):
        with_factors(stored, FACTORS)


def test_layers_that_a_norm_follows_are_found():
    assert normalised(convolutional()) == {"first", "second"}
    assert normalised(perceptron()) == frozenset()


def test_a_norm_that_was_put_back_changes_nothing_until_it_is_trained():
    model = convolutional()
    small = compressed(model, plan_for(model, "weight_only", {"bits": 3}))
    graph = small.clone()
    norms = put_back(graph.module, normalised(model), calibration(model))
    assert set(norms) == {"first", "second"}
    same_outputs(graph, small, calibration(model), 1e-5)


def test_training_starts_with_the_statistics_of_the_batch():
    model = convolutional()
    small = compressed(model, plan_for(model, "weight_only", {"bits": 3}))
    batch = {"x": torch.cat([b["x"] for b in calibration(model)])}
    norms = put_back(small.module, normalised(model), [batch])
    before = small.module(**batch).detach()
    for norm in norms.values():
        norm.train()
    assert torch.allclose(small.module(**batch), before, atol=1e-4)


@torch.no_grad()
def test_a_layer_takes_over_its_norm():
    model = convolutional()
    small = compressed(model, plan_for(model, "weight_only", {"bits": 8}))
    norms = put_back(small.module, ["first"], calibration(model))
    generator = torch.Generator().manual_seed(1)
    norms["first"].weight.mul_(torch.randn(8, generator=generator))
    norms["first"].bias.add_(torch.randn(8, generator=generator))
    wanted = small.outputs(calibration(model)[0])[0]
    factors = take_out(small.module, norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small.module.modules())
    layer = small.module.get_submodule("first")
    assert isinstance(layer, EncodedLayer)
    layer.frozen = with_factors(layer.encoding(), factors["first"])
    assert torch.allclose(small.outputs(calibration(model)[0])[0], wanted, atol=1e-5)


def test_a_layer_with_one_scale_gets_no_norm():
    model = convolutional()
    small = compressed(model, plan_for(model, "weight_only", {"bits": 4, "granularity": "tensor"}))
    assert put_back(small.module, normalised(model), calibration(model)) == {}
