"""What the report says of each layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.error import layer_errors
from flyweight.measure.layers import layer_reports, notes_on
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.testing.strategies import batches_for, perceptron


def weight_only(bits):
    decision = Decision("weight_only", ("0", "4"), Stage.QUANTIZE, {"bits": bits})
    return Plan("perceptron", (decision,))


def reports(plan):
    model = perceptron()
    result = apply(model, plan)
    planned = profile(result)
    errors = layer_errors(model, result, batches_for(model)[:1])
    return layer_reports(model, plan, errors, OnnxExporter().lower(planned)), planned


def test_layer_reports_say_what_each_layer_became():
    first, middle, last = reports(weight_only(8))[0]
    assert [(r.technique, r.weight_bits) for r in (first, middle, last)] == [
        ("weight_only", 8.0),
        ("float", 32.0),
        ("weight_only", 8.0),
    ]
    assert middle.weight_sqnr_db is None
    assert first.weight_sqnr_db > 40


def test_bits_are_those_of_the_file_and_a_note_says_which_were_planned():
    layers, planned = reports(weight_only(3))
    assert [r.weight_bits for r in layers] == [4.0, 32.0, 4.0]
    more = sum(layer.weights for layer in layers if layer.technique != "float") // 8
    assert f"the format stores codes of 3 bits in 4: {more} bytes more than they need" in notes_on(
        layers, planned
    )


def test_a_form_that_the_file_cannot_hold_is_named():
    plan = Plan("perceptron", (Decision("binary", ("0", "4"), Stage.QUANTIZE),))
    layers, planned = reports(plan)
    kept = [replace(layer, weight_bits=1.0) for layer in layers]
    note = "the format stores the binary weights of {} decoded, as float32"
    decoded = tuple(replace(layer, weight_bits=32.0) for layer in layers)
    assert note.format("2 layers") in notes_on(decoded, planned)
    assert note.format("1 layer") in notes_on((decoded[0], *kept[1:]), planned)
    assert not any("binary" in sentence for sentence in notes_on(tuple(kept), planned))


def test_layers_that_stay_float_are_named():
    assert notes_on(*reports(weight_only(8))) == ("1 of 3 layers stay float, 3072 bytes: 2",)


@pytest.mark.parametrize("technique", ["weight_only", "static_int8"])
def test_modules_that_no_technique_takes_are_named_with_their_bytes(technique):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.memory = nn.GRU(6, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, input):
            return self.head(self.memory(input)[0].mean(1))

    model = Model("recurrent", Recurrent(), {"input": torch.randn(1, 5, 6)})
    plan = plan_for(profile(model), technique, {})
    result = apply(model, plan, batches_for(model))
    planned = profile(result)
    errors = layer_errors(model, result, [model.example_inputs])
    layers = layer_reports(model, plan, errors, OnnxExporter().lower(planned))
    (memory,) = (layer for layer in layers if layer.name == "memory")
    weights = 3 * 4 * (6 + 4 + 2)
    assert (memory.name, memory.op, memory.technique, memory.weights) == ("memory", "GRU", "float", weights)
    assert notes_on(layers, planned) == (
        f"1 of 2 layers stay float, {4 * weights} bytes: memory",
        "no technique takes layers of these kinds: memory (GRU)",
    )
