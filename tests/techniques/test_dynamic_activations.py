"""Dynamic activations: widths, weights of any form, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import UnsupportedError
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.error import sqnr_db
from flyweight.measure.profile import profile
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.techniques.dynamic_activations import DynamicActivations
from flyweight.tensors.encoded import encoded_layers, freeze
from flyweight.testing.contracts import _check_same_outputs, check_exporter
from flyweight.testing.strategies import batches_for, perceptron, residual_network, text_network


def linear(model):
    return tuple(layer.name for layer in profile(model).layers if layer.op == "linear")


def rounded(model, before=None, **settings):
    plan = Plan(model.name, (Decision("dynamic_activations", linear(model), Stage.ACTIVATIONS, settings),))
    if before is not None:
        technique, form = before
        plan = plan.add(Decision(technique, linear(model), Stage.QUANTIZE, form))
    return apply(model, plan, batches_for(model))


FORMS = [
    None,
    ("weight_only", {"bits": 4, "granularity": "group"}),
    ("weight_only", {"bits": 4}),
    ("weight_only", {"symmetric": False}),
    ("weight_only", {}),
    ("binary", {}),
]


@pytest.mark.parametrize("before", FORMS, ids=str)
def test_file_computes_the_same_under_any_weights(before, tmp_path):
    check_exporter(OnnxExporter(), OnnxRuntime(), rounded(text_network(), before), tmp_path)


@pytest.mark.parametrize("before", FORMS, ids=str)
def test_file_computes_the_same_with_one_range_a_token(before, tmp_path):
    from flyweight.core.report import Artifact

    result = rounded(text_network(), before, activation_granularity="token")
    OnnxExporter().export(result, tmp_path / "model.onnx")
    file = Artifact(path=tmp_path, format="onnx", model_file="model.onnx", files={}, sha256="")
    _check_same_outputs(result, file, OnnxRuntime())


@pytest.mark.parametrize("granularity", ["tensor", "token"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_layers_read_the_bits_asked_for(bits, granularity):
    result = rounded(text_network(), activation_bits=bits, activation_granularity=granularity)
    layers = profile(result).by_name
    assert {(layers[n].activation_bits, layers[n].activation_mode) for n in linear(result)} == {
        (bits, "dynamic")
    }
    assert layers["table"].activation_mode == "float"
    found = [layer.input_quantizer for _, layer in encoded_layers(result.module)]
    assert {(q.bits, q.granularity) for q in found} == {(bits, granularity)}


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_fewer_bits_lose_more(granularity):
    model = text_network()
    (batch,) = batches_for(model, count=1, size=64)
    wanted = model.outputs(batch)[0]
    results = [rounded(model, activation_bits=b, activation_granularity=granularity) for b in (2, 3, 4, 8)]
    found = [sqnr_db(wanted, result.outputs(batch)[0]) for result in results]
    assert found == sorted(found)


def test_smoothed_inputs_are_rounded_after_smoothing():
    model = perceptron()
    (batch,) = batches_for(model, count=1)
    plain = rounded(model).outputs(batch)[0]
    factors = 2.0 ** torch.arange(-6, 6)
    DynamicActivations().apply(model, Decision("dynamic_activations", linear(model), Stage.ACTIVATIONS), ())
    first = model.module[0]
    with torch.no_grad():
        first.layer.weight.div_(factors)
    first.input_factors = factors
    wanted = first.input_quantizer(batch["input"] * factors) @ first.layer.weight.T + first.layer.bias
    torch.testing.assert_close(first(batch["input"]), wanted)
    assert not torch.equal(model.outputs(batch)[0], plain)


def test_smoothed_float_layers_are_exported_as_they_compute(tmp_path):
    model = perceptron()
    DynamicActivations().apply(model, Decision("dynamic_activations", ("0",), Stage.ACTIVATIONS), ())
    model.module[0].input_factors = torch.rand(12, generator=torch.Generator().manual_seed(0)) + 0.5
    freeze(model.module)
    check_exporter(OnnxExporter(), OnnxRuntime(), model, tmp_path)


@pytest.mark.parametrize("before", FORMS, ids=str)
def test_fewer_than_eight_bits_are_not_exported(before, tmp_path):
    result = rounded(perceptron(), before, activation_bits=4)
    with pytest.raises(UnsupportedError, match=r"layer '0' reads 4-bit activations.*leave them at 8"):
        OnnxExporter().export(result, tmp_path / "model.onnx")


def test_convolution_is_refused():
    decision = Decision("dynamic_activations", ("stem",), Stage.ACTIVATIONS)
    with pytest.raises(UnsupportedError, match=r"layer 'stem' is a conv2d.*use static_activations"):
        DynamicActivations().predict(profile(residual_network()), decision)


def test_embedding_is_refused():
    decision = Decision("dynamic_activations", ("table",), Stage.ACTIVATIONS)
    with pytest.raises(UnsupportedError, match="layer 'table' is an embedding, which reads ids"):
        DynamicActivations().predict(profile(text_network()), decision)


def test_layer_that_reads_codes_already_is_refused():
    with pytest.raises(UnsupportedError, match="layer '0' reads 8-bit codes already"):
        rounded(perceptron(), ("dynamic_int8", {}))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"activation_bits": 9}, "bits of activations must be in 2..8, got 9"),
        ({"activation_granularity": "auto"}, "activation_granularity must be one of tensor, token"),
    ],
)
def test_wrong_setting_is_named(setting, reason):
    decision = Decision("dynamic_activations", ("0",), Stage.ACTIVATIONS, setting)
    with pytest.raises(ValueError, match=reason):
        DynamicActivations().predict(profile(perceptron()), decision)


def test_modules_that_are_no_layers_stay():
    result = rounded(perceptron())
    assert isinstance(result.module[1], nn.ReLU)
