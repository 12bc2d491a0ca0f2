"""Transformers of a few thousand weights in plain torch, as users write them: made from a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.model import Model

VOCABULARY, WIDTH, HEADS, HIDDEN, TOKENS = 50, 32, 4, 48, 7


class RmsNorm(nn.Module):
    """As Llama has it: code of the user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Attention(nn.Module):
    def __init__(self, *, key_heads: int = HEADS, bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.key_heads, self.causal = key_heads, causal
        size = WIDTH // HEADS
        self.query = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.key = nn.Linear(WIDTH, key_heads * size, bias=bias)
        self.value = nn.Linear(WIDTH, key_heads * size, bias=bias)
        self.out = nn.Linear(WIDTH, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = lambda y: y.view(batch, length, -1, WIDTH // HEADS).transpose(1, 2)  # noqa: E731
        repeats = HEADS // self.key_heads
        query, key = heads(self.query(x)), heads(self.key(x)).repeat_interleave(repeats, 1)
        value = heads(self.value(x)).repeat_interleave(repeats, 1)
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        if self.causal:
            scores = scores + torch.full((length, length), -1e9).triu(1)
        y = scores.softmax(-1) @ value
        return self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))


class PostNormBlock(nn.Module):
    """BERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.narrow(F.gelu(self.wide(x))))


class PreNormBlock(nn.Module):
    """GPT-2's."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = Attention(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class LlamaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(key_heads=2, bias=False, causal=True)
        self.norm1, self.norm2 = RmsNorm(WIDTH), RmsNorm(WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Encoder(nn.Module):
    """Tokens to one vector a text, the mean over tokens; post-norm or pre-norm."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH) if block is PostNormBlock else nn.Identity()
        self.blocks = nn.ModuleList([block() for _ in range(2)])
        self.last = nn.Identity() if block is PostNormBlock else nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).mean(1))


class Llama(nn.Module):
    """Tokens to logits of the next ones."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([LlamaBlock() for _ in range(2)])
        self.norm = RmsNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _model(name: str, make, seed: int) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make()
        for norm in (m for m in module.modules() if isinstance(m, nn.LayerNorm)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
        tokens = torch.randint(VOCABULARY, (1, TOKENS))
    return Model(name, module, {"tokens": tokens})


def bert(seed: int = 0) -> Model:
    """Layer norms after each sum."""
    return _model("bert", lambda: Encoder(PostNormBlock), seed)


def gpt(seed: int = 0) -> Model:
    """Layer norms before each branch."""
    return _model("gpt", lambda: Encoder(PreNormBlock), seed)


def llama(seed: int = 0, *, tied: bool = False) -> Model:
    """RMS norms before each branch, grouped-query attention, gated hidden layers."""
    return _model("llama", lambda: Llama(tied=tied), seed)


def token_batches(count: int = 3, size: int = 4, seed: int = 1) -> list[dict[str, Tensor]]:
    """Calibration batches for all of them."""
    generator = torch.Generator().manual_seed(seed)
    return [{"tokens": torch.randint(VOCABULARY, (size, TOKENS), generator=generator)} for _ in range(count)]
