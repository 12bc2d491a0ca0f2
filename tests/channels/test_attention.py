"""Keys and values of causal self-attention are found in the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.channels.attention import attentions
from flyweight.measure.calibrate import in_graph_order
from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.testing.strategies import causal_network
from small_transformers import bert, llama

WIDTH = 8


def found_in(model):
    graph = capture(model)
    return attentions(graph, in_graph_order(graph, model.example_inputs))


def summary(model):
    """(layer, heads, channels of a head) of keys and of values of each attention."""
    found = found_in(model)
    assert not found.others
    return [tuple((*read.layers, read.heads, read.size) for read in (a.keys, a.values)) for a in found.causal]


class One(nn.Module):
    """An attention with one head and what is between it and its layers."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.table = nn.Embedding(5, WIDTH)
        self.weight = nn.Parameter(torch.rand(WIDTH, WIDTH))
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self, x)


def one(attend, tokens=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model("one", One(attend).eval(), {"x": torch.randn(1, tokens, WIDTH)})


def summed(scores, value):
    later = torch.ones((scores.shape[-1],) * 2, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ value


def turned(x):
    """As rotary embeddings turn channels, by tokens."""
    angle = torch.arange(x.shape[-2])[:, None] * torch.linspace(1, 0.1, WIDTH // 2)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def normalised(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


WAYS = {
    "plain": lambda s, x: summed(s.query(x) @ s.key(x).transpose(1, 2) / 3, s.value(x)),
    "batched": lambda s, x: torch.bmm((torch.bmm(s.query(x), s.key(x).mT)).add(
        torch.full((x.shape[1],) * 2, -1e9).triu(1)).softmax(2), s.value(x)),
    "operator": lambda s, x: F.scaled_dot_product_attention(s.query(x), s.key(x), s.value(x), is_causal=True),
    "mask": lambda s, x: F.scaled_dot_product_attention(
        s.query(x), s.key(x), s.value(x), torch.ones((x.shape[1],) * 2, dtype=torch.bool).tril()),
    "turned": lambda s, x: summed(turned(s.query(x)) @ turned(normalised(s.key(x))).mT, s.value(x)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_keys_and_values_are_found_behind_masks_norms_and_rotary_embeddings(way):
    assert summary(one(way)) == [(("key", 1, WIDTH), ("value", 1, WIDTH))]


def test_copies_for_grouped_queries_are_counted_once():
    names = [f"blocks.{index}.attention" for index in range(2)]
    assert summary(llama()) == [((f"{name}.key", 2, 8), (f"{name}.value", 2, 8)) for name in names]
    assert summary(causal_network()) == [(("key", 1, 8), ("value", 1, 8))]


def test_one_layer_may_put_out_queries_keys_and_values():
    def attend(s, x):
        query, key, value = s.value(x).split([4, 2, 2], -1)
        return summed(query[..., :2] @ key.mT, value)

    assert summary(one(attend)) == [(("value", 1, 2), ("value", 1, 2))]


def shared_scores(s, x):
    weights = (s.query(x) @ s.key(x).mT + torch.full((x.shape[1],) * 2, -1e9).triu(1)).softmax(-1)
    return weights @ s.value(x) + weights @ s.query(x)


@pytest.mark.parametrize(
    ("attend", "reason"),
    [
        (lambda s, x: (s.query(x) @ s.key(x).mT).softmax(-1) @ s.value(x), "sees later tokens"),
        (lambda s, x: F.scaled_dot_product_attention(s.query(x), s.key(x), s.value(x)), "sees later tokens"),
        (
            lambda s, x: F.scaled_dot_product_attention(s.query(x), s.key(x[:, :3]), s.value(x[:, :3])),
            "other tokens than those that ask",
        ),
        (lambda s, x: summed(s.query(x) @ s.key(x).mT, x @ s.weight), "made by no layer"),
        (lambda s, x: summed(s.query(x) @ s.key(x).mT, s.value(x) @ s.weight), "'matmul_1', which is no"),
        (lambda s, x: summed(s.query(x) @ s.key(x).mT + s.key(x) @ s.key(x).mT, s.value(x)), "of one"),
        (shared_scores, "shares its scores"),
    ],
)  # fmt: skip
def test_other_attention_is_left_out_with_the_reason(attend, reason):
    (sentence,) = found_in(one(attend)).others
    assert reason in sentence


def test_encoders_have_nothing_that_is_kept():
    found = found_in(bert())
    assert not found.causal
    assert len(found.others) == 2


def test_of_one_token_it_cannot_be_told():
    attend = WAYS["operator"]
    (sentence,) = found_in(one(attend, tokens=1)).others
    assert "give an example of two or more" in sentence


def test_a_sum_without_a_softmax_is_no_attention():
    found = found_in(one(lambda s, x: (s.query(x) @ s.key(x).mT) @ s.value(x)))
    assert (found.causal, found.others) == ((), ())
