"""Quantized models made ready to be trained, and made whole again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flyweight.apply import check_promises, predicted
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.recover.batch_norms import normalised
from flyweight.recover.quantization import Trainable, finished, trainable
from flyweight.recover.settings import TrainingSettings
from flyweight.recover.steps import TrainedStep
from flyweight.recover.train import batch_norms_learn
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.encoded import attach, encoded_layers, freeze, thaw
from tests.recover.networks import (
    calibration,
    compressed,
    convolutional,
    perceptron,
    plan_for,
    same_outputs,
)

SGD = TrainingSettings(epochs=1, optimizer="sgd", learning_rate=0.01)
PLANS = {
    "2 bits": ("weight_only", {"bits": 2, "symmetric": False}, None),
    "3 bits by group": ("weight_only", {"bits": 3, "granularity": "group", "group_size": 9}, None),
    "4 bits by tensor": ("weight_only", {"bits": 4, "granularity": "tensor"}, None),
    "W4A4": ("weight_only", {"bits": 4}, 4),
    "W3A8": ("weight_only", {"bits": 3}, 8),
    "gptq": ("gptq", {"bits": 3}, None),
    "static int8": ("static_int8", {}, None),
    "dynamic int8": ("dynamic_int8", {}, None),
    "binary": ("binary", {}, None),
    "signs": ("binary", {"method": "sign"}, None),
    "ternary": ("binary", {"method": "ternary"}, None),
    "codebook": ("codebook", {"bits": 3}, None),
}
CONVOLUTIONAL = [name for name in PLANS if name != "dynamic int8"]


def made(name: str, settings: TrainingSettings = SGD, model: Model | None = None) -> tuple[Model, Trainable]:
    """The compressed model, and a copy of it that is ready to be trained."""
    model = convolutional() if model is None else model
    technique, values, act = PLANS[name]
    small = compressed(model, plan_for(model, technique, values, act))
    norms = normalised(model)
    return small, trainable(small.clone(), settings, batches=calibration(model), had_norms=norms)


def moved(trained: Trainable, model: Model, steps: int = 5) -> None:
    """Train a little towards random outputs, in place."""
    parameters = [p for group in trained.groups for p in group.parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for batch in calibration(model):
            with batch_norms_learn(trained.model.module):
                (output,) = (trained.model.module(**batch),)
            optimizer.zero_grad()
            (output - torch.randn(output.shape, generator=generator)).square().mean().backward()
            optimizer.step()


@pytest.mark.parametrize("tune", ["all", "scales"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_it_computes_what_it_computed(name: str, tune: str):
    small, ready = made(name, replace(SGD, tune=tune))
    tolerance = 0.02 if name in {"static int8", "W3A8"} else 1e-4  # rounded biases move codes
    same_outputs(ready.model, small, calibration(small), tolerance)


@pytest.mark.parametrize(("norms", "tune"), [("kept", "all"), ("folded", "scales")])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_what_was_trained_is_what_is_frozen(name: str, norms: str, tune: str):
    model = convolutional()
    _, ready = made(name, replace(SGD, tune=tune, batch_norms=norms))
    moved(ready, model)
    wanted = [ready.model.outputs(batch)[0] for batch in calibration(model)]
    finished(ready)
    found = [ready.model.outputs(batch)[0] for batch in calibration(model)]
    tolerance = 0.05 if name in {"static int8", "W4A4", "W3A8"} else 1e-4  # rounding may fall the other way
    for one, other in zip(wanted, found, strict=True):
        assert float((one - other).norm() / one.norm()) <= tolerance


@pytest.mark.parametrize("tune", ["all", "scales"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_it_is_in_the_form_it_was_in(name: str, tune: str):
    model = convolutional()
    technique, values, act = PLANS[name]
    plan = plan_for(model, technique, values, act)
    _, ready = made(name, replace(SGD, tune=tune))
    moved(ready, model)
    finished(ready)
    check_promises(predicted(plan, profile(model)), profile(ready.model))
    assert not any(isinstance(m, TrainedStep | nn.BatchNorm2d) for m in ready.model.module.modules())


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, "dynamic int8"])
def test_frozen_codes_are_found_again_from_the_weight(name: str):
    model = perceptron() if name == "dynamic int8" else convolutional()
    _, ready = made(name, SGD, model)
    moved(ready, model)
    finished(ready)
    before = {n: layer.encoding().decode() for n, layer in encoded_layers(ready.model.module)}
    thaw(ready.model.module)
    freeze(ready.model.module)
    for layer_name, layer in encoded_layers(ready.model.module):
        assert torch.equal(layer.encoding().decode(), before[layer_name])


@pytest.mark.parametrize("name", ["2 bits", "gptq", "binary", "ternary", "codebook"])
def test_tuning_scales_keeps_every_code(name: str):
    model = convolutional()
    small, ready = made(name, replace(SGD, tune="scales", batch_norms="folded"))
    moved(ready, model)
    finished(ready)
    before, changed = dict(encoded_layers(small.module)), False
    for layer_name, layer in encoded_layers(ready.model.module):
        own, other = layer.encoding(), before[layer_name].encoding()
        codes = "signs" if "signs" in vars(own) else "codes"
        if name != "codebook":  # whose tables may change their order
            assert torch.equal(getattr(own, codes), getattr(other, codes))
        changed |= not torch.equal(own.decode(), other.decode())
    assert changed


def test_steps_of_activations_are_learned_and_told_to_the_layers():
    model = convolutional()
    small, ready = made("W4A4")
    moved(ready, model)
    finished(ready)
    learned = [m for m in ready.model.module.modules() if isinstance(m, StaticQuantizer)]
    before = [m for m in small.module.modules() if isinstance(m, StaticQuantizer)]
    assert [float(m.scale) for m in learned] != [float(m.scale) for m in before]
    scales = {float(m.scale) for m in learned}
    for _, layer in encoded_layers(ready.model.module):
        assert float(layer.input_scale) in scales


def test_what_is_trained_is_said_in_words():
    _, ready = made("W4A4")
    assert ready.what == ("weights", "biases and norms", "scales", "steps of activations")
    _, ready = made("binary", replace(SGD, tune="scales"))
    assert ready.what == ("biases and norms", "scales")


def test_only_what_is_trained_gets_gradients():
    _, ready = made("2 bits", replace(SGD, tune="scales"))
    for _, layer in encoded_layers(ready.model.module):
        assert not layer.layer.weight.requires_grad


def test_layers_that_share_a_weight_share_what_is_learned_of_it():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 6)
            self.head = nn.Linear(6, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model("tied", Tied(), {"ids": torch.arange(4)[None]})
    plan = plan_for(model, "weight_only", {"bits": 4})
    small = compressed_without_data(model, plan)
    for tune in ("all", "scales"):
        ready = trainable(small.clone(), replace(SGD, tune=tune))
        scales = [p for group in ready.groups for p in group.parameters if group.what == "scales"]
        assert len(scales) == 1
        with torch.no_grad():
            scales[0].mul_(1.1)
        finished(ready)
        check_promises(predicted(plan, profile(model)), profile(ready.model))


def compressed_without_data(model: Model, plan):
    from flyweight.apply import apply

    return apply(model, plan)


def test_half_scales_stay_halves():
    model = perceptron()
    small = compressed(model, plan_for(model, "weight_only", {"bits": 4}))
    layer = next(layer for _, layer in encoded_layers(small.module))
    layer.encoders[-1].half_scales = True
    ready = trainable(small, SGD)
    moved(ready, model)
    finished(ready)
    scale = layer.encoding().scale
    assert torch.equal(scale, scale.half().float())


def test_an_encoder_without_a_grid_is_trained_as_it_is():
    model = perceptron()
    for name, _ in list(model.module.named_children())[::2]:
        attach(model.module, name, lambda weight, before: before or _Halved(weight), "halved")
    ready = trainable(model, SGD)
    moved(ready, model)
    finished(ready)
    for _, layer in encoded_layers(model.module):
        assert torch.equal(layer.encoding().decode(), layer.layer.weight.detach().half().float())


class _Halved:
    mask = None
    density = 1.0
    nbytes = 0.0

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.half()

    def decode(self) -> Tensor:
        return self._weight.float()
