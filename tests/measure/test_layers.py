"""What the report says of each layer."""

from __future__ import annotations

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.layers import layer_reports, notes_on
from flyweight.measure.profile import profile
from flyweight.testing.strategies import batches_for, perceptron


def weight_only(bits):
    decision = Decision("weight_only", ("0", "4"), Stage.QUANTIZE, {"bits": bits})
    return Plan("perceptron", (decision,))


def reports(plan):
    model = perceptron()
    result = apply(model, plan)
    planned = profile(result)
    return layer_reports(model, result, plan, batches_for(model)[0], OnnxExporter().lower(planned)), planned


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
    assert "the format stores codes of 3 bits in 4" in notes_on(layers, planned)


def test_layers_that_stay_float_are_named():
    assert notes_on(*reports(weight_only(8))) == ("1 of 3 layers stay float: 2",)
