"""Static activations: widths, weights of any form, decisions beside each other, ranges by output error."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.activation_ranges import activation_range, code_parameters
from flyweight.measure.calibrate import observe, watch_values
from flyweight.measure.error import folded, sqnr_db
from flyweight.measure.graph import capture, module_of
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.techniques._placement import place
from flyweight.techniques._static_inputs import grids_of
from flyweight.techniques.static_activations import StaticActivations
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.encoded import encoded_layers
from flyweight.tensors.plain import PlainWeight
from flyweight.tensors.ranges import RANGE_METHODS
from flyweight.testing.contracts import check_exporter
from flyweight.testing.strategies import (
    NETWORKS,
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
)


def activations(model, layers=None, **settings):
    """The decision, on all layers but embeddings unless some are named."""
    names = tuple(layer.name for layer in profile(model).layers if layer.op != "embedding")
    return Decision("static_activations", layers or names, Stage.ACTIVATIONS, settings)


def weights(model, technique="weight_only", **settings):
    names = tuple(layer.name for layer in profile(model).layers if layer.op != "embedding")
    return Decision(technique, names, Stage.QUANTIZE, settings)


def rounded(model, *decisions, batches=None):
    return apply(model, Plan(model.name, decisions or (activations(model),)), batches or batches_for(model))


def quantizers(result):
    return [m for m in result.module.modules() if isinstance(m, StaticQuantizer)]


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_stay_float_and_outputs_close(network):
    model = NETWORKS[network]()
    result = rounded(model)
    (batch,) = batches_for(model, count=1, size=64)
    assert sqnr_db(model.outputs(batch)[0], result.outputs(batch)[0]) > 25
    layers = dict(encoded_layers(result.module))
    assert all(isinstance(layer.encoding(), PlainWeight) for layer in layers.values())
    reference = folded(model).module
    for name, layer in layers.items():
        assert torch.equal(layer.weight, reference.get_submodule(name).weight)


@pytest.mark.parametrize(
    ("network", "technique", "form"),
    [
        ("residual", "weight_only", {"bits": 4}),
        ("text", "weight_only", {"bits": 4, "granularity": "group"}),
        ("perceptron", "weight_only", {"symmetric": False}),
        ("signal", "binary", {}),
    ],
)
def test_weights_keep_the_form_of_the_stage_before(network, technique, form, tmp_path):
    model = NETWORKS[network]()
    alone = rounded(model, weights(model, technique, **form))
    both = rounded(model, weights(model, technique, **form), activations(model))
    (batch,) = batches_for(model, count=1, size=64)
    assert sqnr_db(alone.outputs(batch)[0], both.outputs(batch)[0]) > 25
    for name, layer in encoded_layers(alone.module):
        again = both.module.get_submodule(name)
        torch.testing.assert_close(layer.weight, again.weight, rtol=1e-6, atol=1e-7)
        assert again.technique == f"{technique}+static_activations" or isinstance(layer.layer, nn.Embedding)
    check_exporter(OnnxExporter(), OnnxRuntime(), both, tmp_path)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_layers_read_the_bits_asked_for_and_the_edges_eight(bits):
    model = residual_network()
    layers = profile(rounded(model, activations(model, activation_bits=bits))).by_name
    found = {name: (layer.activation_bits, layer.activation_mode) for name, layer in layers.items()}
    assert found == {
        "stem": (8, "static"),
        "body": (bits, "static"),
        "depthwise": (bits, "static"),
        "head": (8, "static"),
    }


def test_first_and_last_layer_may_have_another_width():
    model = perceptron()
    result = rounded(model, activations(model, activation_bits=3, edge_bits=5))
    assert [layer.activation_bits for layer in profile(result).layers] == [5, 3, 5]
    assert [q.bits for q in quantizers(result)] == [5, 3, 5]


def test_value_that_a_layer_and_an_addition_read_is_rounded_for_each():
    model = residual_network()
    result = rounded(model, activations(model, activation_bits=3))
    graph = result.module
    (addition,) = [n for n in graph.graph.nodes if "add" in str(n.target)]
    read = [module_of(graph, n).bits for n in addition.all_input_nodes]
    assert read == [8, 8]
    (body,) = [n for n in graph.graph.nodes if n.target == "body"]
    skip = next(n for n in addition.all_input_nodes if n.all_input_nodes[0].target != "body")
    (source,) = body.all_input_nodes
    assert module_of(graph, source).bits == 3
    assert source.all_input_nodes == skip.all_input_nodes


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_layer_reads_has_few_values(network):
    model = NETWORKS[network]()
    result = rounded(model, activations(model, activation_bits=2, edge_bits=2))
    (batch,) = batches_for(model, count=1, size=64)
    calls = [n for n in result.module.graph.nodes if n.target in dict(encoded_layers(result.module))]
    read = {n.all_input_nodes[0] for n in calls if n.target != "table"}
    seen = {}
    watch_values(result.module, [batch], lambda node, value: seen.update({node: value}))
    assert read
    assert all(len(seen[node].unique()) <= 4 for node in read)


def test_fewer_bits_lose_more():
    model = residual_network()
    (batch,) = batches_for(model, count=1, size=64)
    wanted = model.outputs(batch)[0]
    found = [
        sqnr_db(wanted, rounded(model, activations(model, activation_bits=b)).outputs(batch)[0])
        for b in (2, 3, 4, 8)
    ]
    assert found == sorted(found)


@pytest.mark.parametrize("make", [residual_network, perceptron])
def test_bias_correction_takes_the_mean_shift_back(make):
    model = make()
    batches = batches_for(model)
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    wanted = model.outputs(whole)[0].mean(0)
    corrected, plain = (
        rounded(model, activations(model, activation_bits=3, bias_correction=on)).outputs(whole)[0].mean(0)
        for on in (True, False)
    )
    assert (corrected - wanted).abs().sum() < (plain - wanted).abs().sum() / 3


def test_two_decisions_are_as_good_as_one():
    model = residual_network()
    (batch,) = batches_for(model, count=1, size=64)
    wanted = model.outputs(batch)[0]
    one = rounded(model)
    two = rounded(
        model,
        activations(model, ("stem", "body")),
        activations(model, ("depthwise", "head"), bias_correction=False, activation_range_method="minmax"),
    )
    assert len(quantizers(two)) == len(quantizers(one))
    assert sqnr_db(wanted, two.outputs(batch)[0]) > sqnr_db(wanted, one.outputs(batch)[0]) - 6


def test_decision_of_another_width_does_not_round_what_was_rounded():
    model = residual_network()
    result = rounded(
        model, activations(model, ("stem", "body")), activations(model, ("depthwise",), activation_bits=3)
    )
    graph = result.module
    (call,) = [n for n in graph.graph.nodes if n.target == "depthwise"]
    (quantizer,) = call.all_input_nodes
    assert module_of(graph, quantizer).bits == 3
    assert not isinstance(module_of(graph, quantizer.all_input_nodes[0]), StaticQuantizer)
    layers = profile(result).by_name
    assert [layers[n].activation_bits for n in ("stem", "body", "depthwise", "head")] == [8, 8, 3, 32]


def test_layer_beside_static_int8_reads_the_codes_there_are():
    model = residual_network()
    mixed = rounded(
        model,
        Decision("static_int8", ("stem", "body", "head"), Stage.QUANTIZE),
        activations(model, ("depthwise",)),
    )
    whole = rounded(model, Decision("static_int8", ("stem", "body", "depthwise", "head"), Stage.QUANTIZE))
    assert len(quantizers(mixed)) == len(quantizers(whole))
    (batch,) = batches_for(model, count=1, size=64)
    assert sqnr_db(model.outputs(batch)[0], mixed.outputs(batch)[0]) > 25


class Twice(nn.Module):
    """One layer on two values of different size."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, input):
        return self.head(self.shared(10 * torch.relu(self.shared(input))))


def test_layer_that_is_called_twice_has_a_grid_for_each_call():
    torch.manual_seed(0)
    model = Model("twice", Twice(), {"input": torch.randn(1, 8)})
    result = rounded(model, weights(model), activations(model))
    assert len(quantizers(result)) == 3
    assert not result.module.get_submodule("shared").integer_bias
    (batch,) = batches_for(model, count=1, size=64)
    assert sqnr_db(model.outputs(batch)[0], result.outputs(batch)[0]) > 25


@pytest.mark.parametrize("weight", [0.0, 1e-39, 1e-20, 1e-12])
def test_dead_channels_keep_their_bias(weight):
    model = perceptron()
    with torch.no_grad():
        for layer in model.module:
            if isinstance(layer, nn.Linear):
                layer.weight[1] *= weight
    result = rounded(model, weights(model), activations(model))
    (batch,) = batches_for(model, count=1)
    assert sqnr_db(model.outputs(batch)[0], result.outputs(batch)[0]) > 25


@cache
def graph_of(network):
    model = folded(NETWORKS[network]())
    return model, capture(model)


def errors_of(network, batches, bits):
    """Squared output error of each layer with min-max ranges, and with adaptive ones, over all batches."""
    model, graph = graph_of(network)
    layers = [layer.name for layer in profile(model).layers if layer.op != "embedding"]
    placement = place(graph, layers, bits=dict.fromkeys(layers, bits))
    grids = grids_of(graph, batches, placement, "adaptive")
    histograms = observe(graph, batches, placement.own)
    errors = {}

    def compare(node, value):
        source = placement.source_of(node)
        for call in node.users if source is not None else ():
            if call.target not in layers:
                continue
            layer = graph.get_submodule(call.target)
            plain = code_parameters(*activation_range(histograms[source], "minmax", bits), bits)
            for at, grid in enumerate((plain, grids[source, bits])):
                off = layer(StaticQuantizer(*grid, bits)(value)).double() - layer(value).double()
                errors.setdefault((source, bits), [0.0, 0.0])[at] += float(off.square().sum())

    watch_values(graph, batches, compare)
    return errors


@settings(max_examples=8)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(2, 8), st.integers(0, 1000), st.sampled_from([1, 3]))
def test_adaptive_ranges_are_never_worse_than_minmax_on_calibration_data(network, bits, seed, power):
    model, _ = graph_of(network)
    batches = [
        {k: v.pow(power) if v.is_floating_point() else v for k, v in batch.items()}
        for batch in batches_for(model, count=2, size=20, seed=seed)
    ]
    errors = errors_of(network, batches, bits)
    assert errors
    assert all(adaptive <= plain * (1 + 1e-4) for plain, adaptive in errors.values())


def test_adaptive_range_is_that_of_least_output_error():
    """A column the layer ignores may be clipped: the range of least error of the value is another one."""
    torch.manual_seed(0)
    model = Model("ignoring", nn.Sequential(nn.Linear(16, 4)), {"input": torch.randn(1, 16)})
    with torch.no_grad():
        model.module[0].weight[:, 0] = 0
    x = torch.randn(64, 16)
    x[:, 0] *= 100
    found = {
        method: rounded(
            model, activations(model, edge_bits=4, activation_range_method=method), batches=[{"input": x}]
        ).outputs({"input": x})[0]
        for method in ("mse", "adaptive")
    }
    wanted = model.outputs({"input": x})[0]
    assert sqnr_db(wanted, found["adaptive"]) > sqnr_db(wanted, found["mse"]) + 5


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("make", [residual_network, signal_network, text_network])
def test_every_range_method_can_be_asked_for(make, method):
    model = make()
    result = rounded(model, activations(model, activation_range_method=method, activation_bits=6))
    (batch,) = batches_for(model, count=1, size=64)
    assert sqnr_db(model.outputs(batch)[0], result.outputs(batch)[0]) > 15


def test_fewer_than_eight_bits_are_not_exported(tmp_path):
    model = perceptron()
    result = rounded(model, activations(model, activation_bits=4))
    with pytest.raises(
        UnsupportedError, match=r"layer '2' reads 4-bit activations.* with flyweight evaluate"
    ):
        OnnxExporter().export(result, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_calibration_data_are_needed():
    model = perceptron()
    with pytest.raises(InputError, match="static_activations needs calibration data"):
        apply(model, Plan(model.name, (activations(model),)))


def test_layer_that_reads_codes_already_is_refused():
    model = perceptron()
    for before in ("static_int8", "dynamic_int8"):
        with pytest.raises(UnsupportedError, match="layer '0' reads 8-bit codes already"):
            rounded(model, weights(model, before), activations(model))


def test_embedding_is_refused():
    model = text_network()
    decision = Decision("static_activations", ("table",), Stage.ACTIVATIONS)
    with pytest.raises(UnsupportedError, match="layer 'table' is an embedding, which reads ids"):
        StaticActivations().predict(profile(model), decision)


def test_layer_that_smooths_its_input_is_refused():
    torch.manual_seed(0)
    model = Model("tokens", nn.Sequential(nn.Linear(32, 8)), {"input": torch.randn(1, 6, 32)})
    result = rounded(model, weights(model))
    result.module[0].input_factors = torch.ones(32)
    with pytest.raises(UnsupportedError, match="layer '0' smooths its input as it runs"):
        StaticActivations().apply(result, activations(model), batches_for(model))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"activation_bits": 1}, "activation_bits: bits of activations must be in 2..8, got 1"),
        ({"edge_bits": 9}, "edge_bits: bits of activations must be in 2..8, got 9"),
        ({"activation_range_method": "mean"}, "range_method must be one of minmax"),
        ({"bias_correction": 1}, "bias_correction must be of type bool"),
    ],
)
def test_wrong_setting_is_named(setting, reason):
    decision = Decision("static_activations", ("0",), Stage.ACTIVATIONS, setting)
    with pytest.raises(ValueError, match=reason):
        StaticActivations().predict(profile(perceptron()), decision)
