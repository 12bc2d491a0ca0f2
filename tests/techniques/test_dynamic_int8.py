"""Dynamic W8A8: how inputs are quantized, and which layers are refused."""

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
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.techniques._dynamic_inputs import _examples
from flyweight.techniques.dynamic_int8 import DynamicInt8
from flyweight.testing.contracts import SIZE_SLACK_BYTES
from flyweight.testing.strategies import (
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
)


def tokens_model(columns=32, rows=8):
    torch.manual_seed(0)
    return Model("tokens", nn.Sequential(nn.Linear(columns, rows)), {"input": torch.randn(1, 6, columns)})


def quantized(model, batches, **settings):
    layers = tuple(d.layers[0] for d in DynamicInt8().propose(profile(model)))
    return apply(
        model, Plan(model.name, (Decision("dynamic_int8", layers, Stage.QUANTIZE, settings),)), batches
    )


def granularity(result):
    return result.module[0].input_quantizer.granularity


def test_overflow_is_told_by_layer():
    model = tokens_model()
    with pytest.raises(UnsupportedError, match="layer '0' reads NaN or infinite values on calibration"):
        quantized(model, [{"input": torch.full((1, 6, 32), torch.inf)}])


def test_layer_with_an_outlier_token_gets_one_range_a_token():
    model = tokens_model()
    x = torch.randn(8, 64, 32)
    x[:, 0] *= 300
    assert granularity(quantized(model, [{"input": x}])) == "token"


def test_layer_without_outliers_gets_one_range_and_no_smoothing():
    model = tokens_model()
    result = quantized(model, [{"input": torch.randn(1, 64, 32)} for _ in range(4)])
    assert granularity(result) == "tensor"
    assert result.module[0].input_factors is None


def test_examples_are_probed_from_every_batch_and_from_one_alone():
    few = [{"x": torch.tensor([[0.0], [1.0]])}, {"x": torch.tensor([[2.0]])}]
    assert [float(example["x"]) for example in _examples(few)] == [0.0, 2.0, 1.0]
    assert len(_examples([{"x": torch.zeros(20, 3)}])) == 8


def test_layers_may_be_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, input):
            return self.fc(input=input)

    torch.manual_seed(0)
    model = Model("m", Keyword(), {"input": torch.randn(1, 8)})
    result = quantized(model, batches_for(model))
    assert sqnr_db(model.outputs()[0], result.outputs()[0]) > 30


def test_layer_that_widens_is_never_quantized_by_token():
    model = tokens_model(columns=8, rows=32)
    x = torch.randn(8, 6, 8)
    x[:, 0] *= 300
    assert granularity(quantized(model, [{"input": x}])) == "tensor"


def test_outlier_channel_is_smoothed_and_the_output_is_closer():
    model = tokens_model(columns=16, rows=16)
    x = torch.randn(8, 6, 16)
    x[..., 3] *= 200
    with torch.no_grad():
        model.module[0].weight[:, 3] /= 200
    smooth, plain = (quantized(model, [{"input": x}], activation_granularity=g) for g in ("auto", "tensor"))
    assert smooth.module[0].input_factors is not None
    wanted = model.outputs({"input": x[:1]})[0]
    errors = [sqnr_db(wanted, result.outputs({"input": x[:1]})[0]) for result in (smooth, plain)]
    assert errors[0] > errors[1] + 3


@pytest.mark.parametrize("transform", ["equalization", "smoothing"])
def test_a_channel_that_no_example_excites_does_not_coarsen_the_range_after_a_transform(transform):
    model = perceptron()
    batches = batches_for(model)
    plan = plan_for(profile(model), f"{transform}+dynamic_int8", {})
    result = apply(model, plan, batches)
    unseen = {"input": torch.randn(200, 12, generator=torch.Generator().manual_seed(5))}
    assert sqnr_db(model.outputs(unseen)[0], result.outputs(unseen)[0]) > 40


def test_factors_are_1_where_nothing_was_seen_and_bounded_where_little_was():
    model = tokens_model(columns=16, rows=16)
    x = torch.randn(8, 6, 16)
    x[..., 3] *= 200
    x[..., 5] = 0
    x[..., 6] *= 1e-5
    with torch.no_grad():
        model.module[0].weight[:, 3] /= 200
    factors = 1 / quantized(model, [{"input": x}]).module[0].input_factors
    assert factors[5] == 1
    assert factors[6] == pytest.approx(1 / 8)
    assert factors[3] > 8


def test_smoothing_factors_are_in_the_predicted_size_once_a_tensor(tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(512, 64) for _ in range(3))

        def forward(self, input):
            return torch.cat([self.one(input), self.two(input), self.three(torch.sin(input) * input)], -1)

    torch.manual_seed(0)
    x = torch.randn(8, 6, 512)
    x[..., 3] *= 200
    module = Heads()
    with torch.no_grad():
        for layer in module.children():
            layer.weight[:, 3] /= 200
    result = quantized(Model("heads", module, {"input": x[:1]}), [{"input": x}])
    assert all(layer.input_factors is not None for layer in result.module.children())
    OnnxExporter().export(result, tmp_path / "model.onnx")
    size = (tmp_path / "model.onnx").stat().st_size
    assert size == pytest.approx(OnnxExporter().lower(profile(result)).storage_bytes, abs=SIZE_SLACK_BYTES)


def test_shared_weight_is_not_smoothed():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 16)
            self.head = nn.Linear(16, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.table(ids) * torch.tensor([500.0] + [1.0] * 15))

    model = Model("tied", Tied(), {"ids": torch.tensor([[1, 2, 3]])})
    result = quantized(model, [{"ids": torch.randint(20, (8, 3))}])
    assert result.module.head.input_factors is None


@pytest.mark.parametrize("wanted", ["tensor", "token"])
def test_given_granularity_is_used(wanted):
    model = tokens_model()
    batches = [{"input": torch.randn(8, 6, 32)}]
    assert granularity(quantized(model, batches, activation_granularity=wanted)) == wanted


def test_without_batches_auto_is_one_range():
    assert granularity(quantized(tokens_model(), [])) == "tensor"


@pytest.mark.parametrize("wanted", ["auto", "tensor", "token"])
def test_outputs_stay_close(wanted):
    model = text_network()
    batches = batches_for(model)
    result = quantized(model, batches, activation_granularity=wanted)
    assert sqnr_db(model.outputs(batches[0])[0], result.outputs(batches[0])[0]) > 30


def test_embeddings_are_stored_and_convolutions_are_not_proposed():
    assert next(iter(DynamicInt8().propose(profile(text_network())))).layers == ("table",)
    assert [d.layers for d in DynamicInt8().propose(profile(signal_network()))] == [("head",)]


def test_convolution_is_refused_with_what_to_do():
    decision = Decision("dynamic_int8", ("stem",), Stage.QUANTIZE)
    with pytest.raises(UnsupportedError, match=r"layer 'stem' is a conv2d: .* use static_int8"):
        DynamicInt8().predict(profile(residual_network()), decision)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 4}, "stores 8 bits, got bits=4; use weight_only"),
        ({"activation_granularity": "row"}, "activation_granularity must be one of auto, tensor, token"),
        ({"range_method": "mean"}, "range_method must be one of"),
    ],
)
def test_wrong_setting_is_named(settings, reason):
    decision = Decision("dynamic_int8", ("head",), Stage.QUANTIZE, settings)
    with pytest.raises(ValueError, match=reason):
        DynamicInt8().predict(profile(text_network()), decision)
