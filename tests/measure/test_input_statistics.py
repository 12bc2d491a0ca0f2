"""Means and mean squares of what weights are multiplied with, against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.measure.input_statistics import input_statistics
from flyweight.model import Model
from flyweight.tensors.affine import AffineForm
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import attach
from flyweight.testing.strategies import batches_for, residual_network, text_network

CONVOLUTIONS = {
    "padded": nn.Conv2d(2, 4, 3, padding=1),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, stride=2),
    "reflected": nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect", dilation=1),
    "same": nn.Conv1d(2, 4, 3, padding="same"),
}


def input_energy(model, names, batches):
    return {name: own.energy for name, own in input_statistics(model, names, batches).items()}


def model_of(layer: nn.Module, example: torch.Tensor) -> Model:
    return Model("m", nn.Sequential(layer), {"input": example[:1]})


def test_of_a_linear_layer_they_are_the_mean_squares_of_its_input():
    batches = [{"input": torch.randn(5, 7, 6)}, {"input": torch.randn(3, 7, 6)}]
    (got,) = input_energy(model_of(nn.Linear(6, 4), batches[0]["input"]), ["0"], batches).values()
    everything = torch.cat([batch["input"].reshape(-1, 6) for batch in batches])
    torch.testing.assert_close(got, everything.square().mean(0, keepdim=True))


def test_means_are_those_of_the_input():
    x = torch.randn(5, 7, 6) + 2
    (got,) = input_statistics(model_of(nn.Linear(6, 4), x), ["0"], [{"input": x}]).values()
    torch.testing.assert_close(got.mean, x.reshape(-1, 6).mean(0, keepdim=True))


@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_of_a_convolution_they_are_the_curvature_of_its_output(layer):
    """Of the sum of squared outputs, half the second derivative by each weight, over the places."""
    shape = (3, layer.in_channels, *([9] * len(layer.kernel_size)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = input_energy(model_of(layer, x), ["0"], [{"input": x}])["0"]
    places = layer(x)[0, 0].numel() * len(x)
    weight = layer.weight.detach().clone()
    for index in ((0, 0, *[0] * (weight.dim() - 2)), tuple(size - 1 for size in weight.shape)):
        step = torch.zeros_like(weight)
        step[index] = 1.0
        layer.weight.data = step  # linear: what one unit of this weight does to the outputs
        response = layer(x) - layer(x * 0)
        wanted = response.square().sum().item() / places
        layer.weight.data = weight
        column = step.reshape(len(step), -1).argmax().item() % step[0].numel()
        row = index[0] if len(got) > 1 else 0
        assert got[row, column].item() == pytest.approx(wanted, rel=1e-4)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, attention_mask):
        return self.layer(x) * attention_mask[..., None]


def test_padded_tokens_are_left_out():
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    batch = {"x": x, "attention_mask": mask}
    model = Model("m", Masked(), {"x": x[:1], "attention_mask": mask[:1]})
    got = input_energy(model, ["layer"], [batch])["layer"]
    torch.testing.assert_close(got, x[mask.bool()].square().mean(0, keepdim=True))


def test_smoothing_counts():
    x = torch.randn(5, 3)
    model = model_of(nn.Linear(3, 2), x)
    layer = attach(model.module, "0", AffineEncoder(AffineForm()), "test")
    layer.input_factors = torch.tensor([1.0, 2.0, 0.5])
    got = input_energy(model, ["0"], [{"input": x}])["0"]
    torch.testing.assert_close(got, (x * layer.input_factors).square().mean(0, keepdim=True))


def test_embeddings_have_none_and_nothing_stays_behind():
    model = text_network()
    batches = batches_for(model)
    assert set(input_energy(model, ["table", "wide"], batches)) == {"wide"}
    assert not any(module._forward_pre_hooks for module in model.module.modules())


def test_of_groups_there_is_one_row_an_output():
    model = residual_network()
    got = input_energy(model, ["stem", "depthwise"], batches_for(model))
    assert {name: tuple(value.shape) for name, value in got.items()} == {"stem": (1, 27), "depthwise": (8, 9)}


def test_values_that_are_not_finite_are_refused_with_the_layer():
    x = torch.tensor([[1.0, float("inf"), 0.0]])
    with pytest.raises(UnsupportedError, match="layer '0' reads NaN or infinite"):
        input_energy(model_of(nn.Linear(3, 2), x), ["0"], [{"input": x}])
