"""Modules that no technique takes: names, sizes and work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.core.layer import FloatModule
from flyweight.measure.graph import capture
from flyweight.measure.profile import parameter_count, profile
from flyweight.model import Model
from flyweight.testing.strategies import NETWORKS

TOKENS, WIDTH = 5, 8


class First(nn.Module):
    """A module's first output, of one input given as often as it takes one."""

    def __init__(self, module, times=1):
        super().__init__()
        self.module, self.times = module, times

    def forward(self, input):
        returned = self.module(*[input] * self.times)
        return returned[0] if isinstance(returned, tuple) else returned


SEQUENCE = torch.randn(1, TOKENS, WIDTH)
MODULES = {
    "LSTM": (First(nn.LSTM(WIDTH, 4, batch_first=True)), SEQUENCE, TOKENS * 4 * 4 * (WIDTH + 4)),
    "GRU": (First(nn.GRU(WIDTH, 4, batch_first=True)), SEQUENCE, TOKENS * 3 * 4 * (WIDTH + 4)),
    "ConvTranspose2d": (First(nn.ConvTranspose2d(3, 4, 3)), torch.randn(1, 3, 6, 6), 36 * 3 * 4 * 9),
    "Conv3d": (First(nn.Conv3d(1, 2, 3)), torch.randn(1, 1, 5, 5, 5), 27 * 2 * 27),
    "EmbeddingBag": (First(nn.EmbeddingBag(10, 4)), torch.tensor([[1, 2]]), 0),
}


@pytest.mark.parametrize(("module", "example", "macs"), MODULES.values(), ids=MODULES.keys())
def test_module_of_another_kind_is_named_with_its_weights_and_work(module, example, macs):
    model = Model("m", module, {"input": example})
    (found,) = profile(model).float_modules
    kind = type(module.module).__name__
    assert found == FloatModule(name="module", kind=kind, weights=parameter_count(model), macs=macs)
    assert profile(model).macs == macs
    assert profile(model).storage_bytes == 4 * parameter_count(model)


def test_attention_is_named_with_its_projections():
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    found = profile(Model("m", First(attention, times=3), {"input": SEQUENCE})).float_modules
    assert [(m.name, m.weights) for m in found] == [
        ("module", 3 * WIDTH * (WIDTH + 1)),
        ("module.out_proj", WIDTH * (WIDTH + 1)),
    ]
    assert [m.macs for m in found] == [3 * TOKENS * WIDTH * WIDTH, TOKENS * WIDTH * WIDTH]


def test_weight_that_is_read_past_its_layer_is_named_and_one_that_is_not_read_is_not():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.unread = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, input):
            return nn.functional.linear(input, self.read.weight)

    found = profile(Model("m", Reads(), {"input": torch.randn(1, 3)})).float_modules
    assert [m.name for m in found] == ["read"]


def test_weight_that_a_known_layer_shares_is_not_counted_again():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)
            self.bag = nn.EmbeddingBag(5, 3)
            self.bag.weight = self.table.weight

        def forward(self, input):
            return self.table(input).sum(1) + self.bag(input)

    assert profile(Model("m", Shares(), {"input": torch.tensor([[1, 2]])})).float_modules == ()


@pytest.mark.parametrize("network", NETWORKS)
def test_known_layers_are_none_of_them(network):
    assert profile(NETWORKS[network]()).float_modules == ()


def test_graph_counts_as_the_modules_it_was_made_of():
    model = Model("m", nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, 16)), {"input": SEQUENCE})
    graph = model.clone()
    graph.module = capture(model)
    before, after = profile(model), profile(graph)
    assert {m.name: (m.weights, m.macs) for m in before.float_modules} == {
        m.name: (m.weights, m.macs) for m in after.float_modules
    }
    assert before.macs == after.macs == TOKENS * (4 * WIDTH * WIDTH + 2 * WIDTH * 16)


def test_settings_of_torch_are_put_back():
    profile(Model("m", MODULES["LSTM"][0], {"input": SEQUENCE}))
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled
