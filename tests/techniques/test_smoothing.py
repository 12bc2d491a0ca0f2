"""Smoothing by SmoothQuant's and by AWQ's factors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from flyweight.apply import apply
from flyweight.channels.sites import observe_inputs, sites
from flyweight.channels.trace import trace
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.agreement import relative_error
from flyweight.measure.graph import capture
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.techniques._smoothing_factors import LARGEST_FACTOR, awq, smoothquant
from flyweight.techniques.smoothing import Smoothing
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.testing.strategies import batches_for, perceptron, residual_network, text_network
from small_transformers import bert, gpt, llama, token_batches

ROUNDING = 1e-5


def layers_of(model):
    return tuple(layer.name for layer in profile(model).layers if layer.op != "embedding")


def smoothed(model, batches=None, **chosen):
    decision = Decision("smoothing", layers_of(model), Stage.TRANSFORM, chosen)
    return apply(model, Plan(model.name, (decision,)), batches_of(model) if batches is None else batches)


def batches_of(model):
    return token_batches() if "tokens" in model.example_inputs else batches_for(model)


def found_sites(model, batches, *, multiply=True):
    """(site, what was seen there) of every place."""
    graph = capture(model)
    found = list(sites(graph, trace(graph, model, layers_of(model)), multiply=multiply))
    return list(zip(found, observe_inputs(model, found, batches, products=True), strict=True))


def inputs_of(model, name, batches):
    """(places, columns): all that a layer reads."""
    read = []
    layer = model.module.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, -2)))
    for batch in batches:
        model.outputs(batch)
    handle.remove()
    return torch.cat(read)


def with_outliers(model, seed=0):
    """A few channels of every embedding and norm made large, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.module.modules():
            if isinstance(module, nn.LayerNorm) or type(module).__name__ == "RmsNorm":
                chosen = torch.randint(len(module.weight), (3,), generator=generator)
                module.weight[chosen] *= 30
    return model


def test_factors_are_those_of_equation_4_of_smoothquant():
    model, batches = with_outliers(llama()), token_batches()
    block = model.module.blocks[0]
    x = inputs_of(model, "blocks.0.gate", batches).abs().amax(0)
    w = torch.maximum(block.gate.weight.abs().amax(0), block.up.weight.abs().amax(0))
    s = x**0.7 / w**0.3
    result = smoothed(model, batches, method="smoothquant", alpha=0.7).module.blocks[0]
    torch.testing.assert_close(result.norm2.weight, block.norm2.weight / s)
    torch.testing.assert_close(result.gate.weight, block.gate.weight * s)


def test_alpha_one_half_gives_input_and_weight_the_same_range():
    model, batches = with_outliers(llama()), token_batches()
    layers = ("blocks.1.gate", "blocks.1.up")
    decision = Decision("smoothing", layers, Stage.TRANSFORM, {"method": "smoothquant", "alpha": 0.5})
    result = apply(model, Plan("llama", (decision,)), batches)
    block = result.module.blocks[1]
    x = inputs_of(result, "blocks.1.up", batches).abs().amax(0)
    w = torch.maximum(block.gate.weight.abs().amax(0), block.up.weight.abs().amax(0))
    torch.testing.assert_close(x, w, rtol=1e-3, atol=1e-5)


@given(seed=st.integers(0, 1000), bits=st.sampled_from([2, 3, 4, 8]), group_size=st.sampled_from([0, 5, 8]))
@settings(max_examples=8)
def test_awq_never_makes_the_output_error_on_its_own_data_larger(seed, bits, group_size):
    model = perceptron(seed)
    batches = batches_for(model, seed=seed)
    with torch.no_grad():
        model.module[2].weight.mul_(10 ** torch.randn(32, generator=torch.Generator().manual_seed(seed)))
    form = AffineForm(bits=bits, granularity="group" if group_size else "channel", group_size=group_size)
    for site, seen in found_sites(model, batches):
        weights = {name: model.module.get_submodule(name).weight.detach() for name in site.reads}
        choice = awq(site, seen, weights, dict.fromkeys(weights), form)
        plain, scaled = 0.0, 0.0
        for name, weight in weights.items():
            x = inputs_of(model, name, batches).double()
            own = choice.factors[site.reads[name]]
            rounded = encode_affine(weight * own, form).decode() / own
            plain += float((x @ (encode_affine(weight, form).decode() - weight).double().T).square().sum())
            scaled += float((x @ (rounded - weight).double().T).square().sum())
        assert scaled <= plain * (1 + 1e-4) + 1e-12
        assert choice.error == pytest.approx(scaled, rel=1e-2, abs=1e-9)
        assert choice.plain_error == pytest.approx(plain, rel=1e-2, abs=1e-9)


def test_awq_helps_where_a_few_channels_are_large():
    model, batches = with_outliers(llama()), token_batches()
    wanted = model.outputs(batches[0])
    rounding = Decision("weight_only", layers_of(model), Stage.QUANTIZE, {"bits": 4})
    plain = apply(model, Plan("llama", (rounding,)), batches)
    decision = Decision("smoothing", layers_of(model), Stage.TRANSFORM, {"bits": 4})
    after = apply(model, Plan("llama", (decision, rounding)), batches)
    before, now = (relative_error(wanted, m.outputs(batches[0])) for m in (plain, after))
    assert now < 0.8 * before


def test_smoothquant_helps_where_inputs_are_rounded_with_one_range():
    model, batches = with_outliers(gpt()), token_batches()
    wanted = model.outputs(batches[0])
    settings = {"activation_granularity": "tensor"}
    rounding = Decision("dynamic_int8", layers_of(model), Stage.QUANTIZE, settings)
    plain = apply(model, Plan("gpt", (rounding,)), batches)
    decision = Decision("smoothing", layers_of(model), Stage.TRANSFORM, {"method": "smoothquant"})
    after = apply(model, Plan("gpt", (decision, rounding)), batches)
    before, now = (relative_error(wanted, m.outputs(batches[0])) for m in (plain, after))
    assert now < 0.7 * before


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("make", [bert, gpt, llama])
def test_smoothed_transformers_compute_the_same(make, method, multiply):
    model = with_outliers(make())
    result = smoothed(model, method=method, multiply=multiply)
    (batch,) = token_batches(1, 5, seed=9)
    assert relative_error(model.outputs(batch), result.outputs(batch)) <= ROUNDING
    before, after = model.module.state_dict(), result.module.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_factors_fold_into_norms_values_and_products_of_a_llama():
    model = with_outliers(llama())
    folded = [set(site.reads) for site, _ in found_sites(model, token_batches()) if site.node is None]
    block = "blocks.1"
    names = ("query", "key", "value")
    assert {f"{block}.attention.{name}" for name in names} in folded
    assert {f"{block}.gate", f"{block}.up"} in folded
    assert {f"{block}.attention.out"} in folded
    assert {f"{block}.down"} in folded
    assert {"head"} in folded


def test_repeated_heads_of_grouped_queries_share_their_factors():
    (site,) = [s for s, _ in found_sites(llama(), token_batches()) if "blocks.0.attention.out" in s.reads]
    channel = site.reads["blocks.0.attention.out"].reshape(4, 8)  # heads of queries, their size
    assert site.channels == 16
    assert torch.equal(channel[0], channel[1])
    assert torch.equal(channel[2], channel[3])
    assert not torch.equal(channel[0], channel[2])


def test_a_model_whose_factors_all_fold_keeps_its_class():
    model = with_outliers(llama())
    assert type(smoothed(model, multiply=False).module) is type(model.module)


def test_what_folds_nowhere_is_multiplied_once_for_all_that_read_it():
    model = with_outliers(bert())
    result = smoothed(model, method="smoothquant").module
    assert isinstance(result, fx.GraphModule)
    readers = {
        str(user.target)
        for node in result.graph.nodes
        if any(str(n.target).startswith("factors_of_") for n in node.all_input_nodes)
        for user in node.users
    }
    assert {"blocks.0.attention.query", "blocks.0.attention.value", "blocks.0.narrow"} <= readers
    factors = [p for name, p in result.named_parameters() if name.startswith("factors_of_")]
    assert len(factors) == 6  # of two blocks: attention, wide and narrow, but the last norm folds; the head
    assert not any(p.requires_grad for p in factors)


@pytest.mark.parametrize(("least", "kept"), [(0.0, True), (0.999, False)])
def test_a_multiplication_that_gains_too_little_is_left_out(least, kept, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flyweight.techniques.smoothing.LEAST_GAIN_OF_A_MULTIPLICATION", least)
    result = smoothed(perceptron())
    assert any(name.startswith("factors_of_input") for name, _ in result.module.named_parameters()) == kept


def test_a_convolution_takes_up_the_factors_of_the_linear_layer_after_it():
    model = residual_network()
    result = smoothed(model, multiply=False, method="smoothquant")
    plain = apply(model, Plan(model.name, (Decision("weight_only", ("head",), Stage.QUANTIZE),)))
    assert not torch.equal(result.module.depthwise.weight, plain.module.depthwise.weight)
    (batch,) = batches_for(model, count=1)
    assert relative_error(model.outputs(batch), result.outputs(batch)) <= ROUNDING


def test_channels_that_are_never_used_are_scaled_as_the_middle_one():
    model = perceptron()
    with torch.no_grad():
        model.module[0].weight[3], model.module[0].bias[3] = 0, -1  # behind the relu always 0
        model.module[2].weight[:, 5] = 0
    batches = batches_for(model)
    (pair,) = [(s, seen) for s, seen in found_sites(model, batches) if "2" in s.reads]
    factors = smoothquant(*pair, {"2": model.module[2].weight.detach()}, alpha=0.5)
    own = factors[pair[0].reads["2"]]
    others = torch.cat([own[:3], own[4:5], own[6:]])
    assert own[3] == own[5]
    assert own[3] == pytest.approx(float(others.median()), rel=0.05)
    assert torch.isfinite(factors).all()
    assert all(torch.isfinite(p).all() for p in smoothed(model, batches).module.parameters())


def test_a_channel_that_calibration_hardly_saw_keeps_its_range():
    model = perceptron()
    (batch,) = batches_for(model, count=1)
    batch["input"][:, 4] = 1e-9
    (pair,) = [(s, seen) for s, seen in found_sites(model, [batch]) if "0" in s.reads]
    factors = smoothquant(*pair, {"0": model.module[0].weight.detach()}, alpha=0.5)
    assert float(factors[4]) == pytest.approx(float(factors.median()) / LARGEST_FACTOR)


def test_factors_of_awq_stay_within_bounds():
    model = with_outliers(llama())
    with torch.no_grad():
        model.module.blocks[0].norm2.weight[0] *= 1e6
    for site, seen in found_sites(model, token_batches()):
        weights = {name: model.module.get_submodule(name).weight.detach() for name in site.reads}
        factors = awq(site, seen, weights, dict.fromkeys(weights), AffineForm(bits=3)).factors
        assert float(factors.min()) >= 1 / LARGEST_FACTOR
        assert float(factors.max()) <= LARGEST_FACTOR


class Masked(nn.Module):
    """Tokens, of which a mask leaves out some."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        kept: Tensor = self.second(torch.relu(self.first(x))) * attention_mask.unsqueeze(-1)
        return kept.sum(1)


def test_padded_tokens_are_not_looked_at():
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    loud = torch.where(mask[..., None] == 1, x, 100.0)
    model = Model("masked", Masked(), {"x": x[:1], "attention_mask": mask[:1]})
    quiet = smoothed(model, [{"x": x, "attention_mask": mask}], method="smoothquant")
    other = smoothed(model, [{"x": loud, "attention_mask": mask}], method="smoothquant")
    assert torch.equal(quiet.module.second.weight, other.module.second.weight)


def test_infinite_inputs_are_refused_by_the_layer_that_reads_them():
    model = perceptron()
    with pytest.raises(UnsupportedError, match=r"layer '\d' reads NaN or infinite values"):
        smoothed(model, [{"input": torch.full((2, 12), float("inf"))}])


def test_smoothing_needs_calibration_data():
    with pytest.raises(InputError, match="smoothing needs calibration data"):
        smoothed(perceptron(), [])


def test_a_model_without_a_place_is_refused():
    model = text_network()
    with pytest.raises(UnsupportedError, match="smoothing finds no linear layer of model 'text'"):
        smoothed(model, batches_for(model), multiply=False)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"alpha": 1.5}, r"alpha must be in 0..1, got 1.5"),
        ({"method": "magic"}, "method must be one of smoothquant, awq, got 'magic'"),
        ({"bits": 1}, "bits must be"),
        ({"granularity": "row"}, "granularity must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(chosen, reason):
    model = perceptron()
    with pytest.raises(ValueError, match=reason):
        Smoothing().predict(profile(model), Decision("smoothing", ("0",), Stage.TRANSFORM, chosen))


def test_an_embedding_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="layer 'table' is of kind embedding"):
        Smoothing().predict(profile(text_network()), Decision("smoothing", ("table",), Stage.TRANSFORM))
