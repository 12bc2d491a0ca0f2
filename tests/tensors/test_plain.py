"""Weights stored as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.measure.profile import profile
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.encoded import attach, freeze
from flyweight.tensors.plain import PlainWeight, as_it_is, attach_plain
from flyweight.testing.strategies import NETWORKS, perceptron


@pytest.mark.parametrize("network", NETWORKS)
def test_plain_layers_compute_and_weigh_what_they_did(network):
    model = NETWORKS[network]()
    before, wanted = profile(model), model.outputs()
    for layer in before.layers:
        attach_plain(model.module, layer.name, "nothing")
    freeze(model.module)
    assert profile(model) == before
    assert all(torch.equal(a, b) for a, b in zip(wanted, model.outputs(), strict=True))


def test_encoded_weight_stays_encoded():
    model = perceptron()
    layer = attach(
        model.module, "0", lambda weight, before: encode_affine(weight, AffineForm(bits=4)), "four"
    )
    assert attach_plain(model.module, "0", "nothing") is layer
    assert profile(model).by_name["0"].code_bits == 4
    assert layer.technique == "four+nothing"


def test_encoding_of_the_stage_before_is_kept():
    stored = PlainWeight(torch.ones(2, 3))
    assert as_it_is(torch.zeros(2, 3), stored) is stored
    assert stored.nbytes == 24


def test_module_that_is_no_layer_is_refused():
    with pytest.raises(UnsupportedError, match="layer '0' is a ReLU"):
        attach_plain(nn.Sequential(nn.ReLU()), "0", "nothing")
