"""Layers that compute more than torch's layer: subclasses, hooks, reparametrised weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from flyweight.apply import apply
from flyweight.errors import UnsupportedError
from flyweight.measure.error import folded
from flyweight.measure.graph import capture
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.tensors.encoded import attach, encoded_layers


class LowRank(nn.Linear):
    """A linear layer with an adapter of rank 1."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(1, inputs)), nn.Parameter(torch.randn(outputs, 1))

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


class Gained(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 0.5


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Scaled(nn.Embedding):
    def forward(self, x):
        return super().forward(x) * self.embedding_dim**0.5


class ActiveNorm(nn.BatchNorm2d):
    def forward(self, x):
        return F.silu(super().forward(x))


def after_hook(layer):
    layer.register_forward_hook(lambda module, args, output: output * 2 + 1)
    return layer


def before_hook(layer):
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    return layer


def replaced(layer):
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias) * 2
    return layer


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


def old_weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


generator = torch.Generator().manual_seed(0)
IMAGE = torch.randn(8, 3, 8, 8, generator=generator)
ROW = torch.randn(8, 8, generator=generator)
TOKENS = torch.tensor([[1, 2, 0], [3, 4, 1]])


def images(*layers):
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))


def rows(layer):
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(16, 4))


NETWORKS = {
    "adapter": lambda: (rows(LowRank(8, 16)), ROW),
    "gain": lambda: (images(Gained(3, 4, 3), nn.BatchNorm2d(4)), IMAGE),
    "padding": lambda: (images(Padded(3, 4, 3)), IMAGE),
    "embedding": lambda: (nn.Sequential(Scaled(5, 8), nn.Linear(8, 4)), TOKENS),
    "hook": lambda: (rows(after_hook(nn.Linear(8, 16))), ROW),
    "pre-hook": lambda: (rows(before_hook(nn.Linear(8, 16))), ROW),
    "replaced forward": lambda: (rows(replaced(nn.Linear(8, 16))), ROW),
    "pruned": lambda: (rows(pruned(nn.Linear(8, 16))), ROW),
    "old weight norm": lambda: (rows(old_weight_norm(nn.Linear(8, 16))), ROW),
    "weight norm": lambda: (rows(parametrizations.weight_norm(nn.Linear(8, 16))), ROW),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


def made(network):
    torch.manual_seed(0)
    module, x = NETWORKS[network]()
    module.eval()(x)
    return Model(network, module, {"input": x[:1]}), {"input": x}


def error(model, wanted, batch):
    (found,) = model.outputs(batch)
    return float((found - wanted).norm() / wanted.norm())


@each_network
def test_layer_that_computes_more_is_a_float_module(network):
    model, _ = made(network)
    before = profile(model)
    assert "0" not in before.by_name
    assert before.layers
    assert any(module.name.split(".")[0] == "0" for module in before.float_modules)


@each_network
def test_graph_computes_what_such_a_layer_computes_once(network):
    model, batch = made(network)
    (wanted,) = model.outputs(batch)
    torch.testing.assert_close(capture(model)(**batch), wanted)
    assert error(folded(model), wanted, batch) < 1e-4


@each_network
@pytest.mark.parametrize("technique", ["weight_only", "static_int8", "dynamic_int8"])
def test_techniques_compress_the_layers_around_it(network, technique):
    model, batch = made(network)
    (wanted,) = model.outputs(batch)
    batches = [{"input": example[None]} for example in batch["input"]]
    result = apply(model, plan_for(profile(model), technique, {}), batches)
    assert error(result, wanted, batch) < 0.05
    assert "0" not in dict(encoded_layers(result.module))


def test_batch_norm_that_computes_more_is_not_folded():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), ActiveNorm(4))
    nn.init.uniform_(module[1].running_mean)
    model = Model("m", module, {"input": IMAGE[:1]})
    torch.testing.assert_close(folded(model).outputs()[0], model.outputs()[0])


@pytest.mark.parametrize("network", ["hook", "replaced forward"])
def test_encoding_such_a_layer_is_refused(network):
    model, _ = made(network)
    with pytest.raises(UnsupportedError, match=r"layer '0' computes more than torch's layer.*leave it out"):
        attach(model.module, "0", lambda weight, before: None, "test")
