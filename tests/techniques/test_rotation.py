"""Rotation of a transformer's stream, and of the values of attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import UnsupportedError
from flyweight.measure.agreement import relative_error
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.techniques.rotation import Rotation
from flyweight.tensors.encoded import attach
from flyweight.testing.contracts import _halve
from flyweight.testing.strategies import batches_for, perceptron, residual_network, text_network, tied_network
from small_transformers import TOKENS, VOCABULARY, WIDTH, Attention, bert, gpt, llama, token_batches

ROUNDING = 1e-5


def layers_of(model):
    return tuple(layer.name for layer in profile(model).layers)


def rotated(model, **chosen):
    return apply(model, Plan(model.name, (Decision("rotation", layers_of(model), Stage.TRANSFORM, chosen),)))


def error_of(model, result, batch=None):
    if batch is None:
        (batch,) = batches_for(model, count=1, size=3)
    return relative_error(model.outputs(batch), result.outputs(batch))


def with_outliers(model, seed=0):
    """A few channels of the stream made large in all that writes it, in place."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(WIDTH, (2,), generator=generator)
    with torch.no_grad():
        model.module.words.weight[:, chosen] *= 20
        for block in model.module.blocks:
            block.attention.out.weight[chosen] *= 20
            (block.down if hasattr(block, "down") else block.narrow).weight[chosen] *= 20
    return model


def kurtosis(weight: Tensor) -> float:
    weight = weight.detach()
    centred = weight.double().flatten() - weight.double().mean()
    return float(centred.pow(4).mean() / centred.pow(2).mean() ** 2)


class Vision(nn.Module):
    """Patches by a convolution, a class token, places that are a parameter, and torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Fused()
        self.wide, self.narrow = nn.Linear(WIDTH, 40, bias=False), nn.Linear(40, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.attention(self.norm1(x))
        x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return self.head(x[:, 0])


class Fused(Attention):
    """Attention by torch's operator."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (y.unflatten(-1, (4, -1)).transpose(1, 2)
                             for y in (self.query(x), self.key(x), self.value(x)))  # fmt: skip
        y = F.scaled_dot_product_attention(query, key, value)
        return self.out(y.transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """A stream of two layers, read by a third after some function that a test gives."""

    def __init__(self, between) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gain, self.shift = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.randn(WIDTH))
        self.places = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.head = nn.Linear(WIDTH, 3)
        self.between = between

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.head(self.between(self, x + self.inner(x)))


def residual(between):
    torch.manual_seed(0)
    return Model("residual", Residual(between), {"tokens": torch.randint(VOCABULARY, (1, TOKENS))})


def normalised_by_hand(s, x):
    centred = x - x.mean(-1, keepdim=True)
    return s.gain * (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)) + s.shift


THROUGH = {
    "nothing": lambda s, x: x,
    "a layer norm": lambda s, x: F.layer_norm(x, [WIDTH], s.gain, s.shift),
    "a layer norm without weights": lambda s, x: F.layer_norm(x, [WIDTH]),
    "an RMS norm of torch": lambda s, x: F.rms_norm(x, [WIDTH], s.gain),
    "an RMS norm by hand": lambda s, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * s.gain,
    "a layer norm by hand": normalised_by_hand,
    "a layer norm by variance": (
        lambda s, x: (x - x.mean(-1, True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6)
    ),
    "unit length": lambda s, x: F.normalize(x, dim=-1),
    "a mean over tokens": lambda s, x: x.mean(1),
    "one token": lambda s, x: x[:, 0],
    "some tokens": lambda s, x: x[:, torch.tensor([2, 0])],
    "joined tokens": lambda s, x: torch.cat([x[:, :2], 0.5 * x[:, 3:]], 1),
    "places": lambda s, x: x + s.places,
    "a number for all channels": lambda s, x: x + 0.3,
    "a weighted sum over tokens": lambda s, x: torch.arange(TOKENS).float().softmax(0).view(1, 1, -1) @ x,
    "masked tokens": lambda s, x: x.masked_fill(torch.arange(TOKENS).view(1, -1, 1) > 3, 0.0),
    "scaled tokens": lambda s, x: x * torch.arange(TOKENS).view(1, -1, 1).float() / 3,
    "transposed and back": lambda s, x: x.transpose(1, 2).transpose(1, 2),
}  # fmt: skip


@pytest.mark.parametrize("between", THROUGH.values(), ids=THROUGH.keys())
def test_a_stream_is_rotated_through_what_is_linear_over_its_channels_and_through_norms(between):
    model = residual(between)
    with torch.no_grad():
        model.module.table.weight += 1  # a mean that a rotation must keep, or not
    result = rotated(model)
    assert error_of(model, result) <= ROUNDING
    assert not torch.equal(result.module.table.weight, model.module.table.weight)
    assert not torch.equal(result.module.head.weight, model.module.head.weight)


AGAINST = {
    "gelu": (lambda s, x: F.gelu(x), "aten.gelu at 'gelu' after layer"),
    "softmax": (lambda s, x: x.softmax(-1), "aten.softmax at"),
    "a layer norm that is added again": (
        lambda s, x: x + F.layer_norm(x, [WIDTH], s.gain),
        r"adds what a norm has scaled \(post-norm\)",
    ),
    "half of the channels": (lambda s, x: torch.cat([x[..., :16], x[..., :16]], -1), "aten.slice at"),
    "flipped channels": (lambda s, x: x.flip(-1), "aten.flip at"),
    "a product with itself": (lambda s, x: x * x, "aten.mul at|layer 'head'"),
    "channels weighted by values": (lambda s, x: x * x.sigmoid(), "aten.sigmoid at"),
    "the largest channel": (lambda s, x: x - x.amax(-1, keepdim=True), "aten.amax at"),
    "a sum of cubes": (lambda s, x: x / x.pow(3).mean(-1, keepdim=True), "aten.pow at"),
    "a norm's weight read elsewhere": (
        lambda s, x: F.layer_norm(x, [WIDTH], s.gain) * s.gain.sum(),
        "what reads 'gain', besides norms",
    ),
    "a layer that reads two things": (
        lambda s, x: x + s.inner(torch.ones(TOKENS, WIDTH)),
        "'inner', which reads something else too",
    ),
}


@pytest.mark.parametrize(("between", "reason"), AGAINST.values(), ids=AGAINST.keys())
def test_what_stands_in_the_way_is_named(between, reason):
    with pytest.raises(
        UnsupportedError, match=f"the stream of model 'residual' cannot be rotated: .*({reason})"
    ):
        rotated(residual(between))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "make", [gpt, llama, lambda seed: llama(seed, tied=True), tied_network, text_network]
)
def test_rotated_models_compute_the_same(make, seed):
    model = make(seed)
    assert error_of(model, rotated(model, seed=seed)) <= ROUNDING


def test_an_image_transformer_is_rotated_from_its_patches_on():
    torch.manual_seed(0)
    model = Model("vision", Vision(), {"image": torch.randn(1, 3, 8, 8)})
    result = rotated(model)
    assert error_of(model, result) <= ROUNDING
    for name in ("patches.weight", "first", "places", "head.weight", "attention.value.weight"):
        assert not torch.equal(result.module.state_dict()[name], model.module.state_dict()[name])
    assert isinstance(result.module, Vision)
    assert model.module.wide.bias is None
    assert result.module.wide.bias is not None  # what the norm's bias makes of it


@pytest.mark.parametrize("seed", range(3))
def test_rotation_lowers_the_kurtosis_of_weights_with_large_channels(seed):
    model = with_outliers(llama(seed), seed)
    result = rotated(model, seed=seed)
    for name in ("words", "blocks.0.down", "blocks.1.attention.out"):
        before, after = (kurtosis(m.module.get_submodule(name).weight) for m in (model, result))
        assert after < 0.2 * before


def test_rotated_weights_are_rounded_better_where_channels_of_the_stream_are_large():
    model = with_outliers(llama())
    rounding = Decision("weight_only", layers_of(model), Stage.QUANTIZE, {"bits": 6, "granularity": "tensor"})
    turning = Decision("rotation", layers_of(model), Stage.TRANSFORM)
    (batch,) = token_batches(1)
    plain = error_of(model, apply(model, Plan("llama", (rounding,))), batch)
    turned = error_of(model, apply(model, Plan("llama", (turning, rounding))), batch)
    assert turned < 0.5 * plain


def test_norms_are_left_with_ones_and_zeros():
    result = rotated(gpt()).module
    for norm in (m for m in result.modules() if isinstance(m, nn.LayerNorm)):
        assert torch.equal(norm.weight, torch.ones(WIDTH))
        assert torch.equal(norm.bias, torch.zeros(WIDTH))


def test_the_seed_decides():
    model = llama()
    one, same, other = (rotated(model, seed=seed).module.words.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_shared_weight_stays_shared_and_a_layer_stands_for_the_norm_before_it():
    model = llama(tied=True)
    result = rotated(model)
    assert isinstance(result.module, fx.GraphModule)
    assert result.module.words.weight is result.module.head.weight
    added = {name for name, m in result.module.named_modules() if isinstance(m, nn.Linear)} - set(
        layers_of(model)
    )
    assert added == {"norm_before_head"}
    assert result.module.norm_before_head.weight.shape == (WIDTH, WIDTH)


def test_a_shared_weight_behind_no_norm_needs_no_layer_in_between():
    model = tied_network()
    result = rotated(model).module
    assert type(result) is type(model.module)
    assert result.table.weight is result.head.weight


class Sentence(nn.Module):
    """One vector of unit length for each text, and that of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(tokens)
        x = x + self.inner(x)
        return F.normalize(x.mean(1), dim=1), self.norm(x)


def test_outputs_are_rotated_back():
    torch.manual_seed(0)
    model = Model("sentence", Sentence(), {"tokens": torch.randint(VOCABULARY, (1, TOKENS))})
    result = rotated(model)
    assert error_of(model, result) <= ROUNDING
    added = [name for name, _ in result.module.named_children() if name.startswith("unrotated_")]
    assert len(added) == 2


def test_a_post_norm_stream_is_refused_and_values_alone_are_rotated():
    model = bert()
    with pytest.raises(UnsupportedError, match=r"cannot be rotated: .*post-norm.*stream=false"):
        rotated(model)
    result = rotated(model, stream=False)
    assert error_of(model, result) <= ROUNDING
    before, after = model.module.state_dict(), result.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    block = "blocks.{}.attention.{}"
    names = {f"{block.format(i, n)}" for i in (0, 1) for n in ("value.weight", "value.bias", "out.weight")}
    assert changed == names


def test_values_of_grouped_queries_are_rotated_with_all_queries_that_share_them():
    model = llama()
    result = rotated(model, stream=False)
    assert error_of(model, result) <= ROUNDING
    value = lambda m: m.module.blocks[0].attention.value.weight.unflatten(0, (2, -1))  # noqa: E731
    before, after = value(model), value(result)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(before.norm(dim=1), after.norm(dim=1))  # head by head


def test_without_values_only_the_stream_is_rotated():
    model = llama()
    both, stream = rotated(model).module, rotated(model, values=False).module
    assert torch.equal(both.blocks[0].gate.weight, stream.blocks[0].gate.weight)
    assert not torch.equal(both.blocks[0].attention.value.weight, stream.blocks[0].attention.value.weight)
    assert error_of(model, rotated(model, values=False)) <= ROUNDING


def test_sparse_layers_are_refused_by_name():
    model = llama().clone()
    attach(model.module, "blocks.0.up", _halve, "masked")
    decision = Decision("rotation", layers_of(model), Stage.TRANSFORM)
    with pytest.raises(
        UnsupportedError, match=r"layer 'blocks\.0\.up', which an earlier decision made sparse"
    ):
        Rotation().apply(model, decision, [])


def test_a_plan_that_leaves_out_a_layer_of_the_stream_is_refused_by_its_name():
    model = llama()
    layers = tuple(name for name in layers_of(model) if name != "blocks.1.up")
    plan = Plan("llama", (Decision("rotation", layers, Stage.TRANSFORM),))
    with pytest.raises(UnsupportedError, match=r"has to change layer 'blocks\.1\.up' too"):
        apply(model, plan)


@pytest.mark.parametrize("model", [perceptron(), residual_network()], ids=lambda m: m.name)
def test_networks_without_a_stream_are_not_proposed_and_are_refused(model):
    assert list(Rotation().propose(profile(model))) == []
    with pytest.raises(UnsupportedError, match=f"the stream of model '{model.name}' cannot be rotated"):
        rotated(model)


def test_nothing_to_rotate_is_refused():
    decision = Decision("rotation", ("wide",), Stage.TRANSFORM, {"stream": False, "values": False})
    with pytest.raises(ValueError, match="one of stream and values must be true"):
        Rotation().predict(profile(text_network()), decision)
    with pytest.raises(UnsupportedError, match="finds no attention in model 'text'"):
        rotated(text_network(), stream=False)
