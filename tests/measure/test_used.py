"""Layers whose output nothing uses are found, and no others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.testing.strategies import NETWORKS


class Net(nn.Module):
    """A body, and a side layer that is used in different ways."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.side, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.way = way

    def forward(self, input):
        x = torch.relu(self.body(input))
        return self.head(self.way(x, self.side(x)))


def in_place(x, side):
    y = torch.zeros_like(x)
    y.view(-1)[:2] = side.flatten()[:2]
    return x + y


def by_number(x, side):
    return x * float(side.mean())


def by_branch(x, side):
    return x if side.sum() > 0 else -x


def by_numpy(x, side):
    return x + torch.from_numpy(side.detach().numpy() * 2)


def by_choice(x, side):
    return x * side.argmax(1, keepdim=True)


def by_operator(x, side):
    return torch.ops.aten.add.Tensor(x, side)


def by_out(x, side):
    y = torch.empty_like(x)
    torch.add(x, side, out=y)
    return y


def unused(x, side):
    torch.tanh(side).sum()
    return x


def by_shape(x, side):
    return x.reshape(side.shape)


def made(way):
    return Model("net", Net(way), {"input": torch.randn(1, 4)})


@pytest.mark.parametrize(
    "way",
    [in_place, by_number, by_branch, by_numpy, by_choice, by_operator, by_out],
    ids=lambda f: f.__name__,
)
def test_a_layer_whose_values_reach_the_output_somehow_is_used(way):
    found = profile(made(way))
    assert [layer.name for layer in found.layers] == ["body", "side", "head"]
    assert found.unused == ()


@pytest.mark.parametrize("way", [unused, by_shape], ids=lambda f: f.__name__)
def test_a_layer_whose_values_reach_no_output_is_in_no_plan_and_takes_no_bytes(way):
    found = profile(made(way))
    assert [layer.name for layer in found.layers] == ["body", "head"]
    assert found.unused == ("side",)
    assert found.float_modules == ()
    assert found.other_bytes == 4 * (4 + 2)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_all_layers_of_networks_without_loose_ends_are_used(network):
    assert profile(NETWORKS[network]()).unused == ()


def test_a_weight_that_an_unused_layer_shares_belongs_to_the_used_one():
    model = made(unused)
    model.module.side.weight = model.module.body.weight
    model.module.body, model.module.side = model.module.side, model.module.body
    found = profile(model)
    assert [(layer.name, layer.tied_to) for layer in found.layers] == [("body", None), ("head", None)]
