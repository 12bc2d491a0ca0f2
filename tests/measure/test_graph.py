"""Capturing models as graphs of their layers, and folding batch norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flyweight.errors import UnsupportedError
from flyweight.measure.error import folded
from flyweight.measure.graph import capture, fold_batch_norms, has_batch_norm
from flyweight.model import Model
from flyweight.testing.strategies import NETWORKS, batches_for, residual_network


def settled(norm):
    """A batch norm that has seen data."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def image_model(module):
    return Model("m", module, {"input": torch.randn(1, 3, 6, 6)})


class Wrapped(nn.Module):
    """Calls a function of itself."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, input):
        return self._forward(self, input)


def called(graph):
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]


@pytest.mark.parametrize("network", NETWORKS)
def test_graph_computes_what_the_model_computes(network):
    model = NETWORKS[network]()
    (batch,) = batches_for(model, count=1, size=5)
    torch.testing.assert_close(capture(model)(**batch), model.outputs(batch)[0])


def test_layer_with_two_names_goes_by_its_first():
    shared = nn.Conv2d(3, 3, 1)
    graph = capture(image_model(nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))))
    assert called(graph) == ["0", "0"]


def test_layers_that_share_a_weight_stay_apart():
    model = image_model(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)))
    model.module[2].weight = model.module[0].weight
    assert called(capture(model)) == ["0", "2"]


@pytest.mark.parametrize(
    ("clamp", "operator"),
    [
        (lambda x: x.clamp(min=0), "relu"),
        (lambda x: x.clamp_(min=0.0), "relu"),
        (lambda x: torch.clamp_min(x, 0), "relu"),
        (lambda x: x.clip(0, 6), "hardtanh"),
        (lambda x: x.clamp(max=6), "clamp"),
        (lambda x: x.clamp(min=0.5), "clamp"),
        (lambda x: x.long().clamp(min=0), "clamp"),
    ],
)
def test_clamp_is_spelt_as_the_activation_it_is(clamp, operator):
    model = image_model(Wrapped(lambda self, x: clamp(self.layer(x)), layer=nn.Conv2d(3, 3, 1)))
    graph = capture(model)
    assert operator in str([n.target for n in graph.graph.nodes if n.op == "call_function"][-1])
    x = torch.randn(2, 3, 6, 6) * 10
    torch.testing.assert_close(graph(input=x), model.outputs({"input": x})[0])


def test_layers_keep_their_names():
    layers = {"stem", "stem_norm", "body", "body_norm", "depthwise", "head"}
    assert set(called(capture(residual_network()))) == layers


def test_model_is_left_as_it_is():
    model = residual_network()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    graph = capture(model)
    with torch.no_grad():
        graph.get_submodule("head").weight.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


FUNCTIONS = {
    "other stride": lambda self, x: F.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1),
    "default padding": lambda self, x: F.conv2d(x, self.conv.weight, self.conv.bias),
    "no bias": lambda self, x: F.conv2d(x, self.conv.weight, padding=1),
    "other bias": lambda self, x: F.conv2d(x, self.conv.weight, self.conv.bias * 2, padding=1),
    "linear without bias": lambda self, x: F.linear(x, self.fc.weight),
}


@pytest.mark.parametrize("forward", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_function_on_the_weight_of_a_layer_is_left_alone(forward):
    model = image_model(Wrapped(forward, conv=nn.Conv2d(3, 4, 3, padding=1), fc=nn.Linear(6, 2)))
    graph = capture(model)
    assert called(graph) == []
    torch.testing.assert_close(graph(**model.example_inputs), model.outputs()[0])


def test_function_that_does_what_the_layer_does_is_the_layer():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    same = Wrapped(lambda self, x: F.conv2d(x, self.conv.weight, self.conv.bias, padding=1), conv=conv)
    assert called(capture(image_model(same))) == ["conv"]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolution_that_does_not_pad_with_zeros_keeps_its_name(mode):
    model = image_model(nn.Sequential(nn.Conv2d(3, 4, 3, padding=(1, 2), stride=2, padding_mode=mode)))
    graph = capture(model)
    assert called(graph) == ["0"]
    torch.testing.assert_close(graph(**model.example_inputs), model.outputs()[0])


def test_convolution_whose_padding_is_another_is_left_alone():
    conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.conv.weight, self.conv.bias)

    assert called(capture(image_model(Wrapped(forward, conv=conv)))) == []


def test_control_flow_on_values_is_refused_with_the_reason():
    branching = Wrapped(lambda self, x: x if x.sum() > 0 else -x)
    with pytest.raises(UnsupportedError, match=r"cannot be traced.*rewrite the part of forward\(\)"):
        capture(image_model(branching))


PAIRS = {
    "conv": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    "conv without bias": nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
    "grouped conv": nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
    "conv then activation": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5)),
}


@pytest.mark.parametrize("module", PAIRS.values(), ids=PAIRS.keys())
def test_folded_model_computes_the_same_without_batch_norms(module):
    torch.manual_seed(0)
    for norm in module:
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            settled(norm)
    model = image_model(module)
    result = folded(model)
    assert not has_batch_norm(result.module)
    assert has_batch_norm(model.module)
    x = {"input": torch.randn(4, 3, 6, 6)}
    torch.testing.assert_close(result.outputs(x)[0], model.outputs(x)[0], rtol=1e-4, atol=1e-5)


def test_model_without_batch_norm_is_itself():
    model = image_model(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert folded(model) is model


def kept(forward):
    torch.manual_seed(0)
    model = image_model(Wrapped(forward, conv=nn.Conv2d(3, 3, 3, padding=1), norm=settled(nn.BatchNorm2d(3))))
    graph = capture(model)
    assert fold_batch_norms(graph) == 0
    x = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(graph(input=x), model.outputs({"input": x})[0], rtol=1e-4, atol=1e-5)


def test_batch_norm_after_a_layer_that_is_called_twice_stays():
    kept(lambda self, x: self.norm(self.conv(self.conv(x))))


def test_batch_norm_after_a_value_that_is_read_elsewhere_stays():
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y

    kept(forward)


def test_batch_norm_before_a_layer_stays():
    kept(lambda self, x: self.conv(self.norm(x)))


def test_batch_norm_after_an_activation_stays():
    kept(lambda self, x: self.norm(torch.relu(self.conv(x))))


def test_graph_that_computes_something_else_is_refused():
    def forward(self, x):
        return self.conv(x) * (2 if torch.compiler.is_exporting() else 1)

    model = image_model(Wrapped(forward, conv=nn.Conv2d(3, 4, 3)))
    with pytest.raises(UnsupportedError, match=r"traced.* computes something else than the model"):
        capture(model)


def test_batch_that_the_code_fixes_is_named():
    model = image_model(Wrapped(lambda self, x: x.reshape(int(x.shape[0]), -1)))
    with pytest.raises(UnsupportedError, match="model 'm' fixes the size of axis 'batch' of 'input'"):
        capture(model)
