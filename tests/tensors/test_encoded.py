"""Layers whose weight is stored encoded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.tensors.affine import AffineForm
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import EncodedLayer, attach, encoded_layers, freeze, thaw

LAYERS = {
    "linear": (nn.Linear(6, 4), torch.randn(3, 6)),
    "conv1d": (nn.Conv1d(2, 4, 3, padding=1), torch.randn(3, 2, 8)),
    "conv2d": (nn.Conv2d(2, 4, 3, stride=2, groups=2), torch.randn(3, 2, 8, 8)),
    "reflected": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), torch.randn(3, 2, 8, 8)),
    "same": (nn.Conv1d(2, 4, 3, padding="same"), torch.randn(3, 2, 8)),
    "embedding": (nn.Embedding(9, 4), torch.tensor([[1, 2], [0, 8]])),
}


@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS.keys())
def test_encoded_layer_computes_as_the_layer_with_the_decoded_weight(layer, x):
    root = nn.Sequential(layer)
    wanted = layer(x)
    encoded = attach(root, "0", AffineEncoder(AffineForm()), "test")
    got = root(x)
    assert (got - wanted).norm() / wanted.norm() < 0.02
    with torch.no_grad():
        layer.weight.copy_(encoded.encoding().decode())
    torch.testing.assert_close(root(x), layer(x))


def test_gradients_reach_the_float_weight_while_thawed():
    root = nn.Sequential(nn.Linear(3, 2))
    layer = attach(root, "0", AffineEncoder(AffineForm(bits=2)), "test")
    root(torch.ones(1, 3)).sum().backward()
    assert torch.equal(layer.layer.weight.grad, torch.ones(2, 3))


def test_frozen_layer_keeps_its_codes_until_it_is_thawed():
    root = nn.Sequential(nn.Linear(3, 2))
    layer = attach(root, "0", AffineEncoder(AffineForm()), "test")
    freeze(root)
    before = layer.encoding().decode()
    with torch.no_grad():
        layer.layer.weight.mul_(2)
    assert torch.equal(layer.encoding().decode(), before)
    thaw(root)
    torch.testing.assert_close(layer.encoding().decode(), before * 2)


def test_second_encoder_is_added_to_the_first():
    root = nn.Sequential(nn.Linear(3, 2))
    one = attach(root, "0", AffineEncoder(AffineForm()), "first")
    two = attach(root, "0", AffineEncoder(AffineForm(bits=4)), "second")
    assert one is two
    assert [name for name, _ in encoded_layers(root)] == ["0"]
    assert two.technique == "first+second"
    assert two.encoding().form.bits == 4


def test_integer_bias_is_rounded_to_the_step_of_the_sums():
    layer = EncodedLayer(nn.Linear(3, 2))
    layer.encoders = (AffineEncoder(AffineForm()),)
    layer.input_scale, layer.integer_bias = torch.tensor(0.5), True
    steps = layer.bias / layer.bias_scale()
    torch.testing.assert_close(steps, steps.round())
    assert ((layer.bias - layer.layer.bias).abs() <= layer.bias_scale() / 2 * 1.001).all()


def test_weight_and_bias_are_read_as_the_layer_computes_with_them():
    root = nn.Sequential(nn.Linear(6, 4))
    layer = attach(root, "0", AffineEncoder(AffineForm(bits=4)), "test")
    layer.input_factors = torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 4.0])
    x = torch.randn(3, 6)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), root(x))


def test_layer_without_bias_has_none():
    assert EncodedLayer(nn.Linear(3, 2, bias=False)).bias is None
    assert EncodedLayer(nn.Embedding(3, 2)).bias is None


def test_transformer_layer_computes_with_the_encoded_weights():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    for name in ("linear1", "linear2"):
        attach(block, name, AffineEncoder(AffineForm(bits=2)), "test")
    freeze(block)
    with torch.no_grad():
        got = block(x)
        for name in ("linear1", "linear2"):
            layer = block.get_submodule(name)
            layer.layer.weight.copy_(layer.encoding().decode())
            block.set_submodule(name, layer.layer)
        wanted = block(x)
    torch.testing.assert_close(got, wanted)


def test_layer_with_two_names_is_encoded_under_both():
    shared = nn.Linear(3, 3)
    root = nn.Sequential(shared, nn.Sequential(shared))
    layer = attach(root, "0", AffineEncoder(AffineForm()), "test")
    assert root[0] is root[1][0] is layer
    assert [name for name, _ in encoded_layers(root)] == ["0"]


def test_embedding_that_changes_its_weight_is_refused_by_name():
    root = nn.Sequential(nn.Embedding(3, 2, max_norm=1.0))
    with pytest.raises(UnsupportedError, match="layer '0' is an embedding with max_norm"):
        attach(root, "0", AffineEncoder(AffineForm()), "test")


def test_module_that_cannot_be_encoded_is_refused_by_name():
    root = nn.Sequential(nn.LayerNorm(3))
    with pytest.raises(UnsupportedError, match="layer '0' is a LayerNorm"):
        attach(root, "0", AffineEncoder(AffineForm()), "test")


def test_layer_without_encoder_is_an_error():
    with pytest.raises(ValueError, match="needs an encoder"):
        EncodedLayer(nn.Linear(3, 2)).encoding()
