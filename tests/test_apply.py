"""Plans are carried out on models whose own code looks at its layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.tensors.encoded import encoded_layers

TECHNIQUES = ("weight_only", "static_int8", "dynamic_int8")


class Asking(nn.Module):
    """Scales what linear layers give, and nothing else."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 4)])

    def forward(self, input):
        for layer in self.layers:
            input = layer(input) * (2.0 if isinstance(layer, nn.Linear) else 1.0)
        return input


class Insisting(nn.Module):
    """Fails where a layer is no torch layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, input):
        if type(self.first) is not nn.Linear:
            raise KeyError("first")
        return self.last(torch.relu(self.first(input)))


class Reading(nn.Module):
    """Reads the sizes of its layers as it runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 3, padding=1)
        self.fc = nn.Linear(128, 4)
        self.table = nn.Embedding(5, 4)

    def forward(self, input):
        y = torch.relu(self.conv(input[:, None]))[..., : input.shape[1] - self.conv.kernel_size[0] + 3]
        rows = self.table(input[:, 0].long() * 0) * self.table.embedding_dim**0.5
        return self.fc(y.flatten(1)[:, : self.fc.in_features]) + rows


class Branching(nn.Module):
    """Asks for the kind of its layer, and for the values it reads: no graph can stand for it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, input):
        y = self.layer(input) * (2 if isinstance(self.layer, nn.Linear) else 1)
        return y if y.sum() > 1e9 else -y


def made(kind):
    torch.manual_seed(0)
    model = Model("m", kind(), {"input": torch.randn(1, 8)})
    return model, [{"input": torch.randn(1, 8)} for _ in range(8)]


def joined(batches):
    return {"input": torch.cat([batch["input"] for batch in batches])}


@pytest.mark.parametrize("kind", [Asking, Insisting, Reading])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_layers_are_encoded_without_changing_what_the_models_code_does(kind, technique, tmp_path):
    model, batches = made(kind)
    inputs = joined(batches)
    (wanted,) = model.outputs(inputs)
    result = apply(model, plan_for(profile(model), technique, {}), batches)
    (found,) = result.outputs(inputs)
    assert (found - wanted).norm() / wanted.norm() < 0.05
    assert list(encoded_layers(result.module))
    OnnxExporter().export(result, tmp_path / "model.onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (of_file,) = session.run(None, {"input": inputs["input"].numpy()})
    assert np.linalg.norm(of_file - found.numpy()) / np.linalg.norm(of_file) < 0.05


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_model_that_can_neither_be_wrapped_nor_traced_is_refused(technique):
    model, batches = made(Branching)
    plan = plan_for(profile(model), technique, {})
    with pytest.raises(UnsupportedError, match=r"code of model 'm' treats its layers in its own way.*traced"):
        apply(model, plan, batches)


def test_model_is_left_with_its_own_layers():
    model, batches = made(Asking)
    before = list(model.module.modules())
    apply(model, plan_for(profile(model), "weight_only", {}), batches)
    assert all(one is other for one, other in zip(before, model.module.modules(), strict=True))


@pytest.mark.parametrize("technique", ["gptq", "static_int8", "learned_rounding", "weight_only"])
def test_a_layer_whose_output_nothing_uses_is_in_no_plan(technique):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pooler = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = torch.relu(self.body(x))
            self.pooler(x)
            return x

    torch.manual_seed(0)
    model = Model("pooled", Pooled(), {"x": torch.randn(1, 4)})
    plan = plan_for(profile(model), technique, {})
    assert [decision.layers for decision in plan.decisions] == [("body",)]
    result = apply(model, plan, [{"x": torch.randn(32, 4)}])
    assert [layer.name for layer in profile(result).layers] == ["body"]
    whole = Plan("pooled", (Decision(technique, ("body", "pooler"), Stage.QUANTIZE),))
    with pytest.raises(InputError, match=r"layer .pooler., whose output nothing uses"):
        apply(model, whole, [{"x": torch.randn(32, 4)}])
