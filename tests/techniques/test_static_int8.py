"""Static W8A8: bias correction, the grid of the first convolution, dead channels, awkward graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError
from flyweight.measure.error import folded, sqnr_db
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.techniques._bias_correction import channels_first
from flyweight.techniques.static_int8 import StaticInt8
from flyweight.tensors.activation import ChannelQuantizer, StaticQuantizer
from flyweight.tensors.encoded import encoded_layers
from flyweight.testing.strategies import (
    NETWORKS,
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
)


def quantized(model, batches=None, **settings):
    plan = plan_for(profile(model), "static_int8", settings)
    return apply(model, plan, batches_for(model) if batches is None else batches)


def layer_outputs(model, name, batch):
    found = []
    handle = model.module.get_submodule(name).register_forward_hook(lambda m, a, out: found.append(out))
    model.outputs(batch)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_stay_close(network):
    model = NETWORKS[network]()
    (batch,) = batches_for(model, count=1, size=64)
    wanted, got = model.outputs(batch)[0], quantized(model).outputs(batch)[0]
    assert sqnr_db(wanted, got) > 25


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (residual_network, ("stem", "body", "depthwise", "head")),
        (signal_network, ("first", "second", "head")),
        (perceptron, ("0", "2", "4")),
    ],
)
def test_bias_correction_makes_channel_means_match(make, names):
    model = make()
    batches = batches_for(model)
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    reference, corrected = folded(model), quantized(model)
    plain = quantized(model, bias_correction=False)
    shifts = {"corrected": 0.0, "plain": 0.0}
    for name in names:
        wanted = layer_outputs(reference, name, whole)
        mean = channels_first(reference.module.get_submodule(name), wanted).mean(1)
        for label, result in (("corrected", corrected), ("plain", plain)):
            layer = result.module.get_submodule(name)
            got = channels_first(layer, layer_outputs(result, name, whole)).mean(1)
            shifts[label] += float((got - mean).abs().sum())
    assert shifts["corrected"] < shifts["plain"] / 3


def image_network(**settings):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3, **settings)
    return Model("image", nn.Sequential(conv, nn.ReLU()), {"input": torch.randn(1, 3, 8, 8)})


@pytest.mark.parametrize("settings", [{"padding": 1}, {"padding": (2, 1), "stride": 2}, {"bias": False}])
def test_first_convolution_reads_each_channel_on_its_own_grid(settings):
    model = image_network(**settings)
    scales = torch.tensor([0.01, 1.0, 30.0]).reshape(1, 3, 1, 1)  # one grid for all would lose the first
    offsets = torch.tensor([0.0, 3.0, -5.0]).reshape(1, 3, 1, 1)
    with torch.no_grad():
        model.module[0].weight.div_(scales)
    batches = [{"input": torch.rand(16, 3, 8, 8) * scales + offsets * scales}]
    result = quantized(model, batches, bias_correction=False)
    assert isinstance(result.module.get_submodule("0").input_quantizer, ChannelQuantizer)
    wanted, got = model.outputs(batches[0])[0], result.outputs(batches[0])[0]
    border = torch.ones(wanted.shape[-2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    inner, outer = (sqnr_db(wanted[..., where], got[..., where]) for where in (~border, border))
    assert inner > 35
    assert outer > inner - 6


@pytest.mark.parametrize(
    "settings", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 3}]
)
def test_first_convolution_of_another_kind_has_an_ordinary_input(settings):
    model = image_network(**settings)
    result = quantized(model)
    assert not any(isinstance(m, ChannelQuantizer) for m in result.module.modules())
    (batch,) = batches_for(model, count=1)
    assert sqnr_db(model.outputs(batch)[0], result.outputs(batch)[0]) > 25


@pytest.mark.parametrize("weight", [1e-14, 1e-30, 1e-36, 0.0])
def test_tiny_weights_without_bias_give_no_nan(weight):
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(12, 12, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer in layers:
            layer.weight *= weight
    model = Model("tiny", layers, {"input": torch.randn(1, 12)})
    result = quantized(model)
    (batch,) = batches_for(model, count=1)
    assert torch.isfinite(result.outputs(batch)[0]).all()
    for _, layer in encoded_layers(result.module):
        assert (layer.bias_scale() >= torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("weight", [0.0, 1e-39, 1e-20, 1e-12])
@pytest.mark.parametrize("make", [residual_network, perceptron])
def test_dead_channels_do_not_overflow_the_integer_bias(make, weight):
    model = make()
    with torch.no_grad():
        for layer in model.module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight[1] *= weight
    result = quantized(model)
    (batch,) = batches_for(model, count=1)
    assert sqnr_db(model.outputs(batch)[0], result.outputs(batch)[0]) > 25
    for _, layer in encoded_layers(result.module):
        scale = layer.bias_scale()
        if scale is not None:
            assert (layer.bias / scale).abs().max() < 2**31


def test_constant_activations_can_be_calibrated():
    model = perceptron()
    result = quantized(model, [{"input": torch.ones(4, 12)}])
    assert torch.isfinite(result.outputs()[0]).all()


def test_values_are_rounded_by_static_quantizers():
    result = quantized(perceptron())
    assert sum(isinstance(m, StaticQuantizer) for m in result.module.modules()) == 3


def test_embedding_is_stored_and_its_ids_are_left_alone():
    layers = profile(quantized(text_network())).by_name
    assert (layers["table"].code_bits, layers["table"].activation_mode) == (8, "float")
    assert layers["wide"].activation_mode == "static"


def test_layer_left_out_of_the_plan_stays_float():
    model = residual_network()
    plan = Plan(model.name, (Decision("static_int8", ("body", "head"), Stage.QUANTIZE),))
    layers = profile(apply(model, plan, batches_for(model))).by_name
    assert [layers[n].activation_mode for n in ("stem", "body", "depthwise", "head")] == [
        "float",
        "static",
        "float",
        "static",
    ]


def test_calibration_data_are_needed():
    with pytest.raises(InputError, match="needs calibration data"):
        quantized(perceptron(), [])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 4}, "stores 8 bits, got bits=4; use weight_only"),
        ({"activation_range_method": "mean"}, "activation_range_method must be one of"),
        ({"range_method": "mean"}, "range_method"),
        ({"bias_correction": "yes"}, "bias_correction must be of type bool"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("static_int8", ("0",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        StaticInt8().predict(profile(perceptron()), decision)
