"""Keys and values as a cache of few bits holds them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from flyweight.tensors.cache import CachedAttention, CachedScores, CacheForm, CacheRounding, cache_bytes

HEADS, TOKENS, SIZE = 2, 11, 6


def form(granularity="channel", bits=2, group_size=4, symmetric=False):
    return CacheForm(bits=bits, granularity=granularity, symmetric=symmetric, group_size=group_size)


def rounding(*args, **kwargs):
    return CacheRounding(form(*args, **kwargs), heads=HEADS, size=SIZE)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kivi(group, bits):
    """Equation 1 of the paper, on numbers that share a scale; scale and minimum in float16."""
    zero = group.min().half().float()
    scale = ((group.max() - zero) / (2**bits - 1)).half().float()
    return ((group - zero) / scale).round().clamp(0, 2**bits - 1) * scale + zero


@pytest.mark.parametrize("bits", [2, 4])
def test_keys_by_channel_are_rounded_in_groups_of_tokens_and_the_last_ones_stay_float(bits):
    x = drawn(1, HEADS, TOKENS, SIZE)
    expected = x.clone()
    for head in range(HEADS):
        for start in (0, 4):
            for channel in range(SIZE):
                group = x[0, head, start : start + 4, channel]
                expected[0, head, start : start + 4, channel] = kivi(group, bits)
    assert torch.equal(rounding(bits=bits)(x), expected)


def test_values_are_rounded_token_by_token_in_groups_of_channels_of_a_head():
    x = drawn(1, HEADS, TOKENS, SIZE)
    expected = x.clone()
    for row in expected.view(-1, SIZE):  # two groups, of 4 and 2 channels
        row[:4], row[4:] = kivi(row[:4].clone(), 3), kivi(row[4:].clone(), 3)
    assert torch.equal(rounding("token", bits=3)(x), expected)


@given(
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["channel", "token"]),
    symmetric=st.booleans(),
    group_size=st.integers(1, 9),
    tokens=st.integers(1, 9),
    size=st.integers(1, 7),
    scale=st.sampled_from([0.0, 1e-9, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 30.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_error_is_half_a_step_at_most_and_what_float16_makes_of_scales(
    bits, granularity, symmetric, group_size, tokens, size, scale, offset
):
    x = drawn(2, tokens, size) * scale + offset
    made = CacheRounding(form(granularity, bits, group_size, symmetric), heads=2, size=size)(x)
    largest = float(x.abs().max())
    step = largest / (2 ** (bits - 1) - 1) if symmetric else float(x.max() - x.min()) / (2**bits - 1)
    assert made.shape == x.shape
    assert float((made - x).abs().max()) <= 0.5 * step + 1.5e-3 * largest + 1e-4


def test_numbers_beyond_float16_stay_finite():
    x = drawn(1, 8, SIZE) * 1e7
    assert rounding()(x).isfinite().all()
    assert rounding("token", symmetric=True)(x).isfinite().all()


def test_gradients_pass_straight_through():
    for made in (rounding(), rounding("token")):
        x = drawn(1, TOKENS, SIZE).requires_grad_()
        weight = drawn(1, TOKENS, SIZE, seed=1)
        (made(x) * weight).sum().backward()
        assert torch.equal(x.grad, weight)


def one_after_the_other(query, key, value, keys, values):
    """Decoding: at each token the cache holds complete groups rounded, and the rest of the keys as floats."""
    outputs = []
    for newest in range(query.shape[-2]):
        past = slice(newest + 1)
        scores = query[..., newest : newest + 1, :] @ keys(key[..., past, :]).transpose(-1, -2)
        outputs.append((scores / math.sqrt(SIZE)).softmax(-1) @ values(value[..., past, :]))
    return torch.cat(outputs, -2)


@pytest.mark.parametrize("granularity", ["channel", "token"])
def test_a_whole_sequence_computes_what_decoding_token_by_token_does(granularity):
    query, key, value = (drawn(3, HEADS, TOKENS, SIZE, seed=seed) for seed in range(3))
    keys, values = rounding(granularity), rounding("token")
    expected = one_after_the_other(query, key, value, keys, values)
    fused = CachedAttention(keys)(query, key, values(value), is_causal=True)
    assert torch.allclose(fused, expected, atol=1e-5)
    scores = CachedScores(keys)(query, key.transpose(-1, -2)) / math.sqrt(SIZE)
    future = torch.full((TOKENS, TOKENS), -1e9).triu(1)
    assert torch.allclose((scores + future).softmax(-1) @ values(value), expected, atol=1e-5)


def masks():
    padding = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    padding[:, :3] = False  # the first three tokens see nothing
    return {
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": padding},
        "added": {"attn_mask": torch.full((TOKENS, TOKENS), -5.0).triu(1)},
        "scaled": {"is_causal": True, "scale": 0.3},
        "none": {},
    }


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("mask", masks())
def test_where_no_group_is_complete_attention_is_torchs_own(mask, grouped):
    query = drawn(3, 2 * HEADS if grouped else HEADS, TOKENS, SIZE)
    key, value = (drawn(3, HEADS, TOKENS, SIZE, seed=seed) for seed in (1, 2))
    arguments = {**masks()[mask], "enable_gqa": grouped}
    made = CachedAttention(rounding(group_size=TOKENS + 1))(query, key, value, **arguments)
    wanted = F.scaled_dot_product_attention(query, key, value, **arguments)
    assert torch.allclose(made, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("granularity", "symmetric", "expected"),
    [
        ("channel", False, 2 * (6 * 4 / 8 + 6 * 4 / 32)),  # a scale and a minimum for 32 tokens
        ("channel", True, 2 * (6 * 4 / 8 + 6 * 2 / 32)),
        ("token", False, 2 * (6 * 4 / 8 + 4)),
    ],
)
def test_bytes_a_token_are_those_of_codes_and_scales(granularity, symmetric, expected):
    made = cache_bytes(rounding(granularity, 4, 32, symmetric))
    assert made.rounded == expected
    assert made.as_float16 == 2 * 6 * 2


def test_modules_that_round_nothing_of_a_cache_hold_none():
    assert cache_bytes(torch.nn.Linear(2, 2)) is None


def test_forms_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"2\.\.8, got 9"):
        form(bits=9)
    with pytest.raises(ValueError, match="at least 1"):
        form(group_size=0)
