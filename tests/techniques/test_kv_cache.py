"""The cache of keys and values rounded: which layers' it is, what each token sees, and what goes with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.apply import apply, carry_out
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError, UnsupportedError
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.agreement import relative_error
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.pipeline import evaluate_plan
from flyweight.planner.candidates import plan_for
from flyweight.recover.settings import TrainingSettings
from flyweight.settings import Settings
from flyweight.techniques.kv_cache import KVCache
from flyweight.tensors.cache import CacheForm, CacheRounding, cache_bytes
from flyweight.testing.strategies import batches_for, causal_network, perceptron
from small_transformers import bert, llama, token_batches

KEYS_AND_VALUES = ("key", "value")
SMALL = {"key_bits": 2, "value_bits": 2, "cache_group_size": 4}  # complete groups in a handful of tokens


def cached(layers=KEYS_AND_VALUES, **settings):
    return Decision("kv_cache", layers, Stage.CACHE, settings)


def rounded(model, *decisions):
    return apply(model, Plan(model.name, decisions or (cached(**SMALL),)), batches_for(model))


def roundings(result):
    """(bits, granularity) of what is rounded, in the order of the graph."""
    found = [m.form for m in result.module.modules() if isinstance(m, CacheRounding)]
    return sorted((form.bits, form.granularity) for form in found)


def error_of(model, result):
    (batch,) = batches_for(model, count=1, size=16)
    return relative_error(model.outputs(batch), result.outputs(batch))


def turned(x: Tensor) -> Tensor:
    """Rotary embeddings."""
    angle = torch.arange(x.shape[-2])[:, None] * torch.linspace(1, 0.1, 4)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


class Rotary(nn.Module):
    """Causal attention written out, with rotary embeddings; one layer puts out queries, keys and values."""

    def __init__(self, rounding: nn.Module | None = None) -> None:
        super().__init__()
        self.fused, self.rounding = nn.Linear(8, 24), rounding or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.fused(x).split(8, -1)
        value = self.rounding(value)
        scores = turned(query) @ self.rounding(turned(key)).mT / 8**0.5
        later = torch.full((x.shape[1], x.shape[1]), -1e9).triu(1)
        return (scores + later).softmax(-1) @ value


def test_keys_are_rounded_behind_rotary_embeddings_and_one_layer_may_make_all_of_them():
    form = CacheForm(bits=3, granularity="token", symmetric=False, group_size=4)
    network = Rotary()
    model = Model("rotary", network, {"x": torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0))})
    settings = {"key_bits": 3, "value_bits": 3, "key_granularity": "token", "cache_group_size": 4}
    result = rounded(model, cached(("fused",), **settings))
    by_hand = Rotary(CacheRounding(form, heads=1, size=8))
    by_hand.load_state_dict(network.state_dict())
    assert torch.allclose(result.outputs()[0], by_hand(model.example_inputs["x"]), atol=1e-5)


class WrittenOut(nn.Module):
    """The causal network with products and a softmax for the operator."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, layer in network.named_children():
            setattr(self, name, layer)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        layers = (self.query, self.key, self.value)
        query, key, value = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in layers)
        key, value = key.expand(-1, 2, -1, -1), value.expand(-1, 2, -1, -1)
        later = torch.full((tokens.shape[1], tokens.shape[1]), -1e9).triu(1)
        y = (query @ key.mT / 8**0.5 + later).softmax(-1) @ value
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


def written_out():
    model = causal_network()
    return Model("causal", WrittenOut(model.module), model.example_inputs, model.dynamic_axes)


@pytest.mark.parametrize("granularity", ["channel", "token"])
@pytest.mark.parametrize("make", [causal_network, written_out])
def test_no_answer_depends_on_later_tokens(make, granularity):
    model = make()
    result = rounded(model, cached(key_granularity=granularity, **SMALL))
    tokens = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(1))
    (whole,) = result.outputs({"tokens": tokens})
    for length in (3, 4, 6, 8):
        (beginning,) = result.outputs({"tokens": tokens[:, :length]})
        assert torch.allclose(whole[:, :length], beginning, atol=1e-5)
    assert error_of(model, result) > 1e-3


def test_the_operator_and_what_it_stands_for_are_rounded_alike():
    first, second = rounded(causal_network()), rounded(written_out())
    (batch,) = batches_for(causal_network(), count=1)
    assert torch.allclose(first.outputs(batch)[0], second.outputs(batch)[0], atol=1e-5)


def test_more_bits_are_closer_to_float():
    model = causal_network()
    errors = [
        error_of(model, rounded(model, cached(**{**SMALL, "key_bits": bits, "value_bits": bits})))
        for bits in (2, 4, 8)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


@pytest.mark.parametrize(
    ("layers", "expected"), [(("key", "head"), [(2, "channel")]), (("value",), [(2, "token")])]
)
def test_only_what_named_layers_put_out_is_rounded(layers, expected):
    assert roundings(rounded(causal_network(), cached(layers, **SMALL))) == expected


def test_keys_and_values_may_have_decisions_of_their_own():
    decisions = (cached(("key",), key_bits=4), cached(("value",), value_bits=2))
    assert roundings(rounded(causal_network(), *decisions)) == [(2, "token"), (4, "channel")]


@pytest.mark.parametrize("activations", ["static_activations", "dynamic_activations"])
def test_weights_cache_and_activations_are_one_plan(activations):
    model = causal_network()
    plan = plan_for(profile(model), f"gptq+kv_cache+{activations}", {"bits": 4, "key_bits": 4, "rounds": 0})
    result = apply(model, plan, batches_for(model))
    after = profile(result).by_name["key"]
    assert (after.code_bits, after.activation_bits) == (4, 8)
    assert roundings(result) == [(4, "channel"), (8, "token")]


def test_every_attention_of_a_transformer_is_taken_and_its_bytes_are_told():
    model = llama()
    settings = {"key_bits": 4, "value_bits": 4, "key_granularity": "token", "cache_group_size": 8}
    result = apply(model, plan_for(profile(model), "kv_cache", settings), token_batches())
    found = cache_bytes(result.module)
    assert found.as_float16 == 2 * 2 * 2 * 8 * 2  # blocks, keys and values, heads, channels, bytes
    assert found.rounded == 2 * 2 * 2 * (8 / 2 + 4)


def test_values_that_are_the_keys_are_rounded_once_as_each():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.both = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            both = self.both(x)
            return F.scaled_dot_product_attention(self.query(x), both, both, is_causal=True)

    model = Model("shared", Shared(), {"x": torch.randn(1, 5, 8)})
    settings = {"key_bits": 8, "value_bits": 2, "key_granularity": "token"}
    assert roundings(rounded(model, cached(("both",), **settings))) == [(2, "token"), (8, "token")]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (bert(), "no causal self-attention in model 'bert': the attention at 'matmul_1' sees later tokens"),
        (perceptron(), "no causal self-attention in model 'perceptron'; choose another"),
    ],
)
def test_models_that_keep_nothing_are_refused(model, reason):
    with pytest.raises(UnsupportedError, match=reason):
        apply(model, plan_for(profile(model), "kv_cache", {}), batches_for(model))


def test_beside_other_decisions_it_is_left_out_of_an_encoder_and_a_note_says_so():
    model = perceptron()
    made = carry_out(model, plan_for(profile(model), "weight_only+kv_cache", {}), batches_for(model))
    assert {decision.technique for decision in made.plan.decisions} == {"weight_only"}
    assert "no causal self-attention" in made.notes[0]


def test_a_plan_without_layers_of_keys_or_values_is_refused_by_their_names():
    with pytest.raises(UnsupportedError, match="the first are 'key' and 'value'"):
        rounded(causal_network(), cached(("query", "head")))


def test_layers_that_make_keys_together_must_be_in_one_decision():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            key = torch.cat([self.one(x), self.other(x)], -1)
            return F.scaled_dot_product_attention(self.query(x), key, self.query(x), is_causal=True)

    model = Model("joined", Joined(), {"x": torch.randn(1, 5, 8)})
    with pytest.raises(UnsupportedError, match=r"layers 'one' and 'other' make .* together"):
        rounded(model, cached(("one",)))
    assert len(roundings(rounded(model, cached(("one", "other"))))) == 1


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"key_bits": 1}, r"key_bits must be in 2\.\.8, got 1"),
        ({"value_bits": 9}, r"value_bits must be in 2\.\.8, got 9"),
        ({"cache_group_size": 0}, "cache_group_size must be at least 1, got 0"),
        ({"key_granularity": "head"}, "key_granularity must be one of channel, token"),
    ],
)
def test_settings_out_of_range_are_refused(setting, reason):
    with pytest.raises(ValueError, match=reason):
        KVCache().predict(profile(causal_network()), cached(**setting))
    with pytest.raises(InputError, match=reason):
        rounded(causal_network(), cached(**setting))


class Last(nn.Module):
    """A classifier of the last token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.head = Rotary(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x)[:, -1])


def test_evaluation_tells_the_bytes_a_token_of_a_model_that_was_trained_on(tmp_path: Path):
    with torch.random.fork_rng():
        module = Last().eval()
    x = np.random.default_rng(0).standard_normal((60, 9, 8)).astype(np.float32)
    targets = module(torch.from_numpy(x)).argmax(1).numpy()
    found = Examples({"x": x}, targets, classes=("cat", "dog", "bird"))
    train, evaluation = found.take(np.arange(30)), found.take(np.arange(30, 60))
    split = Splits(train=train, calibration=train, evaluation=evaluation)
    settings = Settings(
        model="tiny",
        data="made on the spot",
        out=str(tmp_path / "out"),
        techniques=("weight_only+kv_cache",),
        technique_settings={"bits": 4, **SMALL},
        training=TrainingSettings(epochs=1),
        threads=1,
    )
    quality = evaluate_plan(settings, module=module, splits=split)
    assert quality.estimate.value > 0.5
    # 8 channels of keys, then of values: codes, and scales and minima for 4 tokens, then for 4 channels
    taken = (8 * 2 / 8 + 8 * 4 / 4) + (8 * 2 / 8 + 2 * 4)
    assert f"take {taken:g} bytes a token, scales included, instead of 32 in float16" in quality.notes[1]


def test_files_do_not_hold_it_and_the_refusal_says_what_measures_it(tmp_path: Path):
    result = rounded(causal_network())
    with pytest.raises(UnsupportedError, match=r"hold no cache between calls: .* flyweight evaluate"):
        OnnxExporter().export(result, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
