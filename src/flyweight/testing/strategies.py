"""Small models and data with which plug-ins are tested: made on the spot, from a seed, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from flyweight.model import Model

PIXELS = 8
TOKENS = 6
VOCABULARY = 40
TIED_ENTRIES = 1_000


class _Residual(nn.Module):
    """Convolutions with batch norms around a residual addition, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.body_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(image)))
        x = torch.relu(x + self.body_norm(self.body(x)))
        x = self.pool(torch.relu(self.depthwise(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _Text(nn.Module):
    """An embedding, and linear layers on each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 16)
        self.wide = nn.Linear(16, 32)
        self.narrow = nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.narrow(nn.functional.gelu(self.wide(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


class _Tied(nn.Module):
    """An embedding whose weight is the output layer's too: more than 200 kB in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TIED_ENTRIES, 128)
        self.wide = nn.Linear(128, 384)
        self.narrow = nn.Linear(384, 128)
        self.head = nn.Linear(128, TIED_ENTRIES, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.narrow(torch.relu(self.wide(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


class _Causal(nn.Module):
    """An embedding, one attention in which tokens see earlier ones, and a prediction of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 16)
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 8)
        self.value, self.out = nn.Linear(16, 8), nn.Linear(16, 16)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        query, key, value = (
            y.unflatten(-1, (-1, 8)).transpose(1, 2) for y in (self.query(x), self.key(x), self.value(x))
        )
        y = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        logits: Tensor = self.head(x + self.out(y.transpose(1, 2).flatten(2)))
        return logits


class _Signal(nn.Module):
    """Convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 8, 5, stride=2)
        self.second = nn.Conv1d(8, 8, 3, padding="same")
        self.head = nn.Linear(8, 4)

    def forward(self, signal: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(signal))))
        logits: Tensor = self.head(x.mean(2))
        return logits


def residual_network(seed: int = 0) -> Model:
    """An image classifier, (batch, 3, 8, 8) to (batch, 4), whose batch norms have seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _Residual()
        for norm in (module.stem_norm, module.body_norm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.05, 0.2)  # type: ignore[arg-type]
        return Model("residual", module, {"image": torch.randn(1, 3, PIXELS, PIXELS)})


def perceptron(seed: int = 0) -> Model:
    """Three linear layers, (batch, 12) to (batch, 4)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
        return Model("perceptron", nn.Sequential(*layers), {"input": torch.randn(1, 12)})


def text_network(seed: int = 0) -> Model:
    """An embedding and linear layers, (batch, length) token ids to (batch, 4); the length is dynamic."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = torch.randint(VOCABULARY, (1, TOKENS))
        return Model("text", _Text(), {"tokens": tokens}, dynamic_axes={"tokens": {1: "length"}})


def tied_network(seed: int = 0) -> Model:
    """A text network of 1 MB with tied weights, (batch, length) token ids to (batch, `TIED_ENTRIES`)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = torch.randint(VOCABULARY, (1, TOKENS))
        return Model("tied", _Tied(), {"tokens": tokens}, dynamic_axes={"tokens": {1: "length"}})


def causal_network(seed: int = 0) -> Model:
    """Grouped-query attention, (batch, length) token ids to (batch, length, `VOCABULARY`)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = torch.randint(VOCABULARY, (1, TOKENS))
        return Model("causal", _Causal(), {"tokens": tokens}, dynamic_axes={"tokens": {1: "length"}})


def signal_network(seed: int = 0) -> Model:
    """One-dimensional convolutions, (batch, 2, 32) to (batch, 4)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model("signal", _Signal(), {"signal": torch.randn(1, 2, 32)})


NETWORKS: Mapping[str, Callable[[], Model]] = {
    "residual": residual_network,
    "perceptron": perceptron,
    "text": text_network,
    "tied": tied_network,
    "signal": signal_network,
}
# beside those, for techniques that round what attention keeps
WITH_A_CACHE: Mapping[str, Callable[[], Model]] = {"causal": causal_network}


def batches_for(model: Model, *, count: int = 2, size: int = 8, seed: int = 1) -> list[dict[str, Tensor]]:
    """Calibration batches of the model's inputs: normal values, and token ids within `VOCABULARY`."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(example: Tensor) -> Tensor:
        shape = (size, *example.shape[1:])
        if example.is_floating_point():
            return torch.randn(shape, generator=generator)
        return torch.randint(VOCABULARY, shape, generator=generator)

    return [{name: drawn(example) for name, example in model.example_inputs.items()} for _ in range(count)]
