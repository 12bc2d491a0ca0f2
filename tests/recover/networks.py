"""Small networks with random weights, and random examples that they label, for tests of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Scalar, Stage
from flyweight.data.examples import Examples, Splits
from flyweight.data.preprocessing import Preprocessing
from flyweight.measure.profile import profile
from flyweight.model import Model

CLASSES = ("cat", "dog", "bird")


class Convolutions(nn.Module):
    """Two convolutions with batch norms, one of whose factors are partly negative, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first_norm(self.first(x)))
        x = torch.relu(self.second_norm(self.second(x)) + x)
        return self.head(x.mean((2, 3)))


def convolutional(seed: int = 0) -> Model:
    """A model of `Convolutions` whose batch norms have statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Convolutions()
        with torch.no_grad():
            for norm in (module.first_norm, module.second_norm):
                norm.weight.copy_(torch.rand(8) + 0.5)
                norm.weight[::3] *= -1
                norm.bias.copy_(torch.randn(8) * 0.3)
                norm.running_mean.copy_(torch.randn(8) * 0.2)
                norm.running_var.copy_(torch.rand(8) + 0.2)
            module.head.weight *= 3  # so that classes differ
        sample = torch.randn(1, 3, 6, 6)
    return Model("convolutional", module, {"x": sample}, preprocessing=Preprocessing())


def perceptron(seed: int = 0) -> Model:
    """Two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, len(CLASSES)))
        sample = torch.randn(1, 16)
    return Model("perceptron", module, {"input": sample}, preprocessing=Preprocessing())


@torch.no_grad()
def examples(model: Model, count: int, seed: int) -> Examples:
    """Random inputs, labelled by the model."""
    ((name, sample),) = model.example_inputs.items()
    x = np.random.default_rng(seed).standard_normal((count, *sample.shape[1:])).astype(np.float32)
    labels = model.module(torch.from_numpy(x)).argmax(1).numpy()
    return Examples({name: x}, labels, classes=CLASSES)


def splits(model: Model, count: int = 256) -> Splits:
    """Disjoint ones."""
    return Splits(examples(model, count, 1), examples(model, 32, 2), examples(model, 64, 3))


def calibration(model: Model) -> list[dict[str, Tensor]]:
    """The calibration split of `splits`, in two batches."""
    ((name, values),) = splits(model).calibration.inputs.items()
    return [{name: torch.from_numpy(values[i : i + 16])} for i in (0, 16)]


def plan_for(model: Model, technique: str, settings: dict[str, Scalar], act: int | None = None) -> Plan:
    """All layers with one technique, and static activations of so many bits."""
    names = tuple(layer.name for layer in profile(model).layers)
    decisions = [Decision(technique, names, Stage.QUANTIZE, settings)]
    if act is not None:
        wide = {"activation_bits": act, "edge_bits": act}
        decisions.append(Decision("static_activations", names, Stage.ACTIVATIONS, wide))
    return Plan(model.name, tuple(decisions))


def compressed(model: Model, plan: Plan) -> Model:
    """The model with the plan carried out."""
    return apply(model, plan, calibration(model))


def same_outputs(one: Model, other: Model, inputs: Sequence[dict[str, Tensor]], tolerance: float) -> None:
    """Fails unless both put out the same, relative to the size of the outputs."""
    for batch in inputs:
        first, second = one.outputs(batch)[0], other.outputs(batch)[0]
        assert float((first - second).norm() / first.norm()) <= tolerance
