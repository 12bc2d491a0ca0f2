"""Keys and values of attention, rounded as a cache of few bits holds them between tokens.

The whole sequence is computed at once, and each token sees what it would see if tokens came one after the
other: keys whose scales span several tokens are rounded for those tokens only that come when the group is
complete. Gradients pass straight through the rounding.

Source: Liu et al. 2024, arXiv:2402.02750 (KIVI), sections 3.2 and 3.3.
Differs: of values, and of keys by token, the newest tokens are not kept in float; a prompt reads what the
cache holds, and not its own floats; symmetric codes are offered too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flyweight.tensors.activation import highest_code, straight_through

KeyGranularity = Literal["channel", "token"]
KEY_GRANULARITIES: tuple[str, ...] = get_args(KeyGranularity)
SCALE_BYTES = 2  # scales and minima are float16, as the cache that is compared with
FLOAT_CACHE_BITS = 16


@final
@dataclass(frozen=True, kw_only=True)
class CacheForm:
    """How one tensor of a cache is stored.

    Attributes:
        bits: Of a code, 2..8.
        granularity: ``"token"``: a scale for each token and ``group_size`` channels of a head;
            ``"channel"``: one for each channel and ``group_size`` tokens, of which the last incomplete group
            stays float.
        symmetric: Codes around 0, without a minimum.
        group_size: See above; at least 1.
    """

    bits: int
    granularity: KeyGranularity
    symmetric: bool
    group_size: int

    def __post_init__(self) -> None:
        highest_code(self.bits)
        if self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")

    def bytes_a_token(self, heads: int, size: int) -> float:
        """Codes and scales of ``heads`` heads of ``size`` channels, in complete groups."""
        scales = size / self.group_size if self.granularity == "channel" else -(-size // self.group_size)
        numbers = 1 if self.symmetric else 2
        return heads * (size * self.bits / 8 + scales * numbers * SCALE_BYTES)


@final
class CacheRounding(nn.Module):
    """Rounds keys or values.

    Args:
        form: Of what is stored.
        heads: Stored a token; more may be read, where queries share them.
        size: Channels of a head.
    """

    def __init__(self, form: CacheForm, *, heads: int, size: int) -> None:
        super().__init__()
        self.form, self.heads, self.size = form, heads, size

    def forward(self, x: Float[Tensor, "... tokens size"]) -> Float[Tensor, "... tokens size"]:
        """As the codes represent it."""
        exact, group = x.detach(), self.form.group_size
        if self.form.granularity == "token":
            parts = (exact[..., start : start + group] for start in range(0, exact.shape[-1], group))
            return straight_through(x, torch.cat([_rounded(part, self.form, dim=-1) for part in parts], -1))
        complete = exact.shape[-2] // group * group
        parts = (exact[..., start : start + group, :] for start in range(0, complete, group))
        rounded = [_rounded(part, self.form, dim=-2) for part in parts]
        return straight_through(x, torch.cat([*rounded, exact[..., complete:, :]], -2))

    def visible(self, tokens: int) -> Bool[Tensor, "tokens tokens"]:
        """[i, j]: whether token j is rounded once token i is the newest."""
        newest, ends = torch.arange(tokens), torch.arange(tokens)
        if self.form.granularity == "channel":
            ends = (ends // self.form.group_size + 1) * self.form.group_size - 1
        return ends <= newest[:, None]


@final
class CachedScores(nn.Module):
    """Products of queries with the keys of a cache."""

    def __init__(self, rounding: CacheRounding) -> None:
        super().__init__()
        self.rounding = rounding

    def forward(
        self, query: Float[Tensor, "*heads tokens size"], keys: Float[Tensor, "*other_heads size tokens"]
    ) -> Float[Tensor, "... tokens tokens"]:
        """Of each query with the keys as they are held when its token is the newest; later ones are void."""
        rounded = self.rounding(keys.transpose(-1, -2)).transpose(-1, -2)
        scores: Tensor = query @ rounded
        if self.rounding.form.granularity == "token":
            return scores
        return torch.where(self.rounding.visible(keys.shape[-1]).to(keys.device), scores, query @ keys)


@final
class CachedAttention(nn.Module):
    """`torch.nn.functional.scaled_dot_product_attention` on the keys of a cache, without dropout."""

    def __init__(self, rounding: CacheRounding) -> None:
        super().__init__()
        self.scores = CachedScores(rounding)

    def forward(
        self,
        query: Float[Tensor, "*heads tokens size"],
        key: Float[Tensor, "*key_heads tokens size"],
        value: Float[Tensor, "*key_heads tokens out"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Float[Tensor, "*heads tokens out"]:
        """Arguments are torch's, which has the last ones by keyword alone."""
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = self.scores(query, key.transpose(-1, -2)) * factor
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        nothing = scores.isneginf().all(-1, keepdim=True)  # padding that sees no token: torch answers 0
        sums: Tensor = scores.softmax(-1).masked_fill(nothing, 0.0) @ value
        return sums


@final
@dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """What is stored a token of the keys and values that are rounded, of all layers."""

    rounded: float
    as_float16: float


def cache_bytes(module: nn.Module) -> CacheBytes | None:
    """None where nothing of a cache is rounded."""
    found = [m for m in module.modules() if isinstance(m, CacheRounding)]
    if not found:
        return None
    return CacheBytes(
        rounded=sum(m.form.bytes_a_token(m.heads, m.size) for m in found),
        as_float16=sum(m.heads * m.size * FLOAT_CACHE_BITS / 8 for m in found),
    )


def _rounded(x: Float[Tensor, " *shape"], form: CacheForm, *, dim: int) -> Float[Tensor, " *shape"]:
    """What shares a scale lies along ``dim``."""
    if form.symmetric:
        highest = (1 << (form.bits - 1)) - 1
        scale = _step(x.abs().amax(dim, keepdim=True) / highest)
        return (x / scale).round().clamp(-highest, highest) * scale
    low = _as_float16(x.amin(dim, keepdim=True))
    scale = _step((x.amax(dim, keepdim=True) - low) / highest_code(form.bits))
    return ((x - low) / scale).round().clamp(0, highest_code(form.bits)) * scale + low


def _as_float16(x: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest).half().to(x.dtype)


def _step(x: Tensor) -> Tensor:
    """As stored; 1 where all values are the same, or too close for float16 to tell."""
    scale = _as_float16(x)
    return torch.where(scale > 0, scale, torch.ones_like(scale))
