"""Cross-layer equalization."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.agreement import relative_error
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.techniques.equalization import Equalization
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.testing.strategies import perceptron, residual_network, text_network
from small_transformers import bert, llama

ROUNDING = 1e-5


class Mobile(nn.Module):
    """A depthwise convolution between two others, as in MobileNet."""

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.wide = nn.Conv2d(3, 12, 1)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow = nn.Conv2d(12, 4, 1)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.act(self.deep(self.act(self.wide(x)))))


def mobile(activation=nn.ReLU, seed=0):
    torch.manual_seed(seed)
    return Model("mobile", Mobile(activation), {"x": torch.randn(1, 3, 6, 6)})


def plan_of(model, **chosen):
    layers = tuple(layer.name for layer in profile(model).layers if layer.op != "embedding")
    return Plan(model.name, (Decision("equalization", layers, Stage.TRANSFORM, chosen),))


def equalized(model, batches=(), **chosen):
    return apply(model, plan_of(model, **chosen), batches)


def batch_of(model, seed=1, size=16):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, *x.shape[1:], generator=generator) for name, x in model.example_inputs.items()
    }


def scale_apart(model, seed):
    """Scale the channels between the layers of a perceptron by up to a thousand, in place."""
    generator = torch.Generator().manual_seed(seed)
    layers = [m for m in model.module.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for before, after in pairwise(layers):
            factors = 10 ** (torch.rand(before.out_features, generator=generator) * 3)
            before.weight.mul_(factors[:, None])
            before.bias.mul_(factors)
            after.weight.div_(factors)


def with_rounded_weights(model, bits):
    copy = model.clone()
    form = AffineForm(bits=bits, granularity="tensor")
    with torch.no_grad():
        for layer in (m for m in copy.module.modules() if isinstance(m, nn.Linear)):
            layer.weight.copy_(encode_affine(layer.weight, form).decode())
    return copy


def test_two_layers_are_equalized_by_equation_11_in_one_sweep():
    torch.manual_seed(0)
    model = Model(
        "two", nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), {"input": torch.randn(1, 6)}
    )
    first, second = (model.module[i].weight.detach().clone() for i in (0, 2))
    r1, r2 = 2 * first.abs().amax(1), 2 * second.abs().amax(0)
    s = (r1 * r2).sqrt() / r2
    result = equalized(model, sweeps=1)
    torch.testing.assert_close(result.module[0].weight, first / s[:, None])
    torch.testing.assert_close(result.module[0].bias, model.module[0].bias / s)
    torch.testing.assert_close(result.module[2].weight, second * s)
    torch.testing.assert_close(result.module[2].bias, model.module[2].bias)


@given(seed=st.integers(0, 1000), bits=st.sampled_from([4, 6, 8]))
@settings(max_examples=8)
def test_equalized_layers_are_rounded_better_where_channels_were_scaled_apart(seed, bits):
    model = perceptron(seed)
    scale_apart(model, seed)
    batch = batch_of(model)
    wanted = model.outputs(batch)
    before = relative_error(wanted, with_rounded_weights(model, bits).outputs(batch))
    after = relative_error(wanted, with_rounded_weights(equalized(model), bits).outputs(batch))
    assert after < before


@pytest.mark.parametrize("seed", range(3))
def test_sweeps_end_with_the_same_ranges_on_both_sides_of_each_channel(seed):
    model = mobile(seed=seed)
    with torch.no_grad():
        model.module.deep.weight.mul_(10 ** torch.randn(12, 1, 1, 1))
    after = equalized(model).module
    wide, deep, narrow = (layer.weight.abs() for layer in (after.wide, after.deep, after.narrow))
    torch.testing.assert_close(wide.amax((1, 2, 3)), deep.amax((1, 2, 3)), rtol=2e-3, atol=0)
    torch.testing.assert_close(deep.amax((1, 2, 3)), narrow.amax((0, 2, 3)), rtol=2e-3, atol=0)


@pytest.mark.parametrize("model", [mobile(), residual_network(), bert(), llama()], ids=lambda m: m.name)
@pytest.mark.parametrize("sums", [False, True])
def test_equalized_models_compute_the_same(model, sums):
    (batch,) = [batch_of(model)] if model.name in {"mobile", "residual"} else [model.example_inputs]
    result = equalized(model, sums=sums)
    assert relative_error(model.outputs(batch), result.outputs(batch)) <= ROUNDING
    before, after = model.module.state_dict(), result.module.state_dict()
    assert any(name in before and not torch.equal(before[name], value) for name, value in after.items())


def test_a_module_stays_of_its_own_class():
    assert isinstance(equalized(mobile()).module, Mobile)


def test_equalizing_twice_changes_nothing_more():
    once = equalized(mobile())
    twice = equalized(once)
    for name, value in once.module.state_dict().items():
        torch.testing.assert_close(twice.module.state_dict()[name], value, rtol=5e-3, atol=0)


def test_a_clamp_is_left_alone_unless_asked():
    with pytest.raises(UnsupportedError, match="finds no two layers of model 'mobile'"):
        equalized(mobile(nn.ReLU6))


def test_a_clamp_gets_a_bound_for_each_channel_and_clips_what_it_clipped():
    model = mobile(nn.ReLU6)
    batch = {"x": 20 * batch_of(model)["x"]}
    reached = model.module.wide(batch["x"]).amax()
    assert reached > 6
    result = equalized(model, clamps=True)
    assert isinstance(result.module, fx.GraphModule)
    assert relative_error(model.outputs(batch), result.outputs(batch)) <= ROUNDING


def test_dead_channels_stay_as_they_are():
    model = mobile()
    with torch.no_grad():
        model.module.wide.weight[3] = 0
        model.module.wide.weight[5] = 1e-20
        model.module.narrow.weight[:, 7] = 0
    after = equalized(model).module
    torch.testing.assert_close(after.wide.bias[[3, 5]], model.module.wide.bias[[3, 5]])
    assert all(torch.isfinite(p).all() for p in after.parameters())


def test_a_layer_between_pairs_is_equalized_with_both():
    model = perceptron()
    scale_apart(model, 3)
    with torch.no_grad():
        spread = equalized(model).module[2].weight.abs()
    assert spread.amax(1).max() / spread.amax(1).min() < 10
    assert spread.amax(0).max() / spread.amax(0).min() < 10


def test_high_biases_are_absorbed_into_the_next_layer():
    model = perceptron()
    with torch.no_grad():
        model.module[0].bias[:4] += 30
    batches = [batch_of(model, size=200)]
    result = equalized(model, batches, absorb_bias=True)
    plain = equalized(model)
    hidden = lambda m: m.module[0](batches[0]["input"]).amax(0)[:4]  # noqa: E731
    assert (hidden(result) < 0.6 * hidden(plain)).all()
    assert relative_error(model.outputs(batches[0]), result.outputs(batches[0])) < 1e-2


def test_absorbed_biases_are_as_the_formula_says():
    torch.manual_seed(0)
    model = Model(
        "two", nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)), {"input": torch.randn(1, 6)}
    )
    with torch.no_grad():
        model.module[0].bias += 4
    batch = batch_of(model, size=100)
    plain = equalized(model).module
    values = plain[0](batch["input"])
    c = (values.mean(0) - 3 * values.std(0, correction=0)).clamp_min(0)
    assert c.any()
    result = equalized(model, [batch], absorb_bias=True).module
    torch.testing.assert_close(result[0].bias, plain[0].bias - c)
    torch.testing.assert_close(result[2].bias, plain[2].bias + plain[2].weight @ c)


def test_biases_are_not_absorbed_by_a_layer_that_pads_with_zeros():
    model = mobile()
    with torch.no_grad():
        model.module.wide.bias += 30
        model.module.deep.bias += 30
    batch = batch_of(model)
    plain, result = equalized(model).module, equalized(model, [batch], absorb_bias=True).module
    torch.testing.assert_close(result.wide.bias, plain.wide.bias)
    assert (result.deep.bias < plain.deep.bias).any()


def test_absorbing_needs_calibration_data():
    with pytest.raises(InputError, match="absorb_bias needs calibration data"):
        equalized(perceptron(), absorb_bias=True)


def test_a_model_without_pairs_is_refused():
    with pytest.raises(UnsupportedError, match="finds no two layers of model 'text'"):
        equalized(text_network())


def test_only_the_named_layers_change():
    model = perceptron()
    plan = Plan(model.name, (Decision("equalization", ("2", "4"), Stage.TRANSFORM),))
    after = apply(model, plan).module
    assert torch.equal(after[0].weight, model.module[0].weight)
    assert not torch.equal(after[2].weight, model.module[2].weight)


@pytest.mark.parametrize(("chosen", "reason"), [({"sweeps": 0}, "sweeps must be at least 1, got 0")])
def test_settings_out_of_range_are_refused(chosen, reason):
    decision = plan_of(perceptron(), **chosen).decisions[0]
    with pytest.raises(ValueError, match=reason):
        Equalization().predict(profile(perceptron()), decision)


def test_an_embedding_is_refused_by_name():
    model = text_network()
    with pytest.raises(UnsupportedError, match="layer 'table' is of kind embedding"):
        Equalization().predict(profile(model), Decision("equalization", ("table",), Stage.TRANSFORM))


def test_weights_are_rounded_after_they_were_equalized():
    model = perceptron()
    layers = ("0", "2", "4")
    plan = plan_of(model).add(Decision("weight_only", layers, Stage.QUANTIZE, {"bits": 8}))
    assert relative_error(model.outputs(), apply(model, plan).outputs()) < 0.02
