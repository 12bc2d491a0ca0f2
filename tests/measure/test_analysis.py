"""The analysis of where quality is lost."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from flyweight import catalog
from flyweight.apply import apply
from flyweight.core.analysis import KL, RELATIVE
from flyweight.core.layer import CodebookProfile
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import UnsupportedError
from flyweight.measure import trials
from flyweight.measure.analysis import (
    EXAMPLES,
    EXAMPLES_A_CALL,
    EXAMPLES_ONE_BY_ONE,
    analyse,
    analysed_batches,
    code_bits,
)
from flyweight.measure.error import folded, layer_errors
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.progress import SILENT
from flyweight.testing.strategies import batches_for, perceptron, residual_network, text_network


def analysed(model, plan, *, classes=True, batches=None, progress=SILENT):
    batches = batches_for(model) if batches is None else batches
    compressed, reference = apply(model, plan, batches), folded(model)
    chosen = analysed_batches(compressed, batches)
    errors = layer_errors(reference, compressed, chosen)
    return analyse(reference, compressed, errors, chosen, classes=classes, progress=progress)


def weight_only(*layers, bits=4):
    return Plan("m", (Decision("weight_only", layers, Stage.QUANTIZE, {"bits": bits}),))


def test_quantized_layers_are_analysed_in_execution_order():
    model = residual_network()
    found = analysed(model, weight_only("head", "stem", "body"))
    assert [layer.name for layer in found.layers] == ["stem", "body", "head"]
    assert {layer.bits for layer in found.layers} == {4.0}
    assert (found.unit, found.examples, found.trial_examples) == (KL, 16, 16)


def test_a_layer_quantized_by_itself_does_all_the_damage():
    found = analysed(perceptron(), weight_only("2"))
    (layer,) = found.layers
    assert layer.damage == pytest.approx(found.damage, rel=1e-5)
    assert layer.errors.output_alone == layer.errors.output


def test_the_error_of_the_last_layer_is_that_of_the_output():
    found = analysed(perceptron(), weight_only("0", "4"))
    assert found.output == found.layers[-1].errors.output


def test_outputs_that_are_not_classes_are_compared_by_their_relative_error():
    found = analysed(perceptron(), weight_only("0"), classes=False)
    assert found.unit == RELATIVE
    assert found.damage == pytest.approx(found.output.relative)


def test_a_layer_in_few_bits_does_more_damage_than_one_in_many():
    decisions = (weight_only("0", bits=2).decisions[0], weight_only("2", bits=8).decisions[0])
    found = analysed(perceptron(), Plan("perceptron", decisions))
    assert [layer.name for layer in found.ranked] == ["0", "2"]
    assert found.ranked[0].gain > 0


def test_a_model_without_quantized_layers_has_no_analysis():
    assert analysed(perceptron(), Plan("perceptron")) is None


def test_where_all_layers_cannot_be_tried_those_with_the_largest_error_are(monkeypatch):
    monkeypatch.setattr(trials, "TRIAL_CALLS", 2)
    decisions = (weight_only("0", "4", bits=8).decisions[0], weight_only("2", bits=2).decisions[0])
    found = analysed(perceptron(), Plan("perceptron", decisions))
    assert [layer.name for layer in found.layers if layer.damage is not None] == ["2"]
    assert all(layer.errors.output_alone and layer.histogram for layer in found.layers)
    assert found.trial_examples == 8


def test_a_bar_shows_each_trial():
    told = []

    class Told:
        def track(self, items, label):
            told.append((len(items), label))
            return items

        stage = SILENT.stage

    analysed(perceptron(), weight_only("0", "2"), progress=Told())
    assert told == [(2, "Trying each layer alone")]


def test_examples_are_bounded():
    model = perceptron()
    batches = batches_for(model, count=3, size=40)
    compressed = apply(model, weight_only("0"), batches)
    chosen = analysed_batches(compressed, batches)
    assert {len(batch["input"]) for batch in chosen} == {EXAMPLES_A_CALL}
    joined = torch.cat([batch["input"] for batch in chosen])
    assert torch.equal(joined, torch.cat([batch["input"] for batch in batches])[:EXAMPLES])


def test_examples_that_interact_are_measured_one_by_one():
    model = perceptron()
    batches = batches_for(model, count=2, size=40)
    plan = plan_for(profile(model), "dynamic_int8", {"activation_granularity": "tensor"})
    chosen = analysed_batches(apply(model, plan, batches), batches)
    assert [len(batch["input"]) for batch in chosen] == [1] * EXAMPLES_ONE_BY_ONE


def test_texts_are_measured_one_by_one_without_their_padding():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": mask}
    first, second = analysed_batches(perceptron(), [batch])
    assert first["input_ids"].tolist() == [[0, 1, 2]]
    assert first["attention_mask"].tolist() == [[1, 1, 1]]
    assert second["input_ids"].tolist() == [[5, 6, 7, 8, 9]]


def test_texts_padded_on_the_left_stay_whole():
    mask = torch.tensor([[0, 0, 1]])
    (batch,) = analysed_batches(perceptron(), [{"ids": torch.ones(1, 3), "attention_mask": mask}])
    assert batch["ids"].shape == (1, 3)


def test_a_layer_that_is_called_twice_is_analysed_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, input):
            return self.head(torch.relu(self.inner(torch.relu(self.inner(input)))))

    torch.manual_seed(0)
    model = Model("twice", Twice(), {"input": torch.randn(1, 8)})
    found = analysed(model, weight_only("inner", "head"))
    assert [layer.name for layer in found.layers] == ["inner", "head"]
    inner = found.layers[0]
    alone = analysed(model, weight_only("inner"))
    assert inner.damage == pytest.approx(alone.damage, rel=1e-5)


@pytest.mark.parametrize("technique", catalog.names("technique"))
def test_what_any_technique_makes_can_be_analysed_and_written(technique):
    model = text_network()
    try:
        plan = plan_for(profile(model), technique, {})
        found = analysed(model, plan)
    except UnsupportedError as error:
        pytest.skip(str(error))
    if found is not None:
        json.dumps(asdict(found), allow_nan=False)
        assert found.damage < 1
        assert all(layer.errors.output_alone.relative < 1 for layer in found.layers)


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        ({"code_bits": 3, "encoding": "affine"}, 3),
        ({"encoding": "ternary"}, 2),
        ({"encoding": "float16"}, 16),
        ({"encoding": "codebook", "codebook": CodebookProfile(entries=16)}, 4),
        ({"encoding": "vector", "codebook": CodebookProfile(entries=256, dimension=4)}, 2),
        ({"weight_bits": 5.5}, 5.5),
    ],
)
def test_bits_are_those_of_the_codes(changes, bits):
    layer = replace(profile(perceptron()).layers[0], **changes)
    assert code_bits(layer) == bits
