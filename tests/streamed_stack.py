"""A small stack of transformer blocks as files: its code, its weights in shards, and calibration data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from flyweight.load.pytorch import load_module
from flyweight.load.tensor_files import index_text

BLOCKS, TOKENS, VOCABULARY = 3, 6, 20

CODE = f"""
import torch
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, *, mask):
        q, k, v = self.mix(self.norm1(x)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / x.shape[-1] ** 0.5 + mask
        x = x + self.out(scores.softmax(-1) @ v)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.words, self.head = nn.Embedding({VOCABULARY}, width), nn.Linear(width, {VOCABULARY})
        self.layers = nn.ModuleList([Block(width) for _ in range({BLOCKS})])
        self.register_buffer("causal", torch.full(({TOKENS}, {TOKENS}), -1e9).triu(1), persistent=False)
        self.places = nn.Parameter(torch.zeros({TOKENS}, width))

    def forward(self, tokens, attention_mask):
        mask = self.causal + (1 - attention_mask[:, None].float()) * -1e9
        x = self.words(tokens) + self.places
        for layer in self.layers:
            x = layer(x, mask=mask)
        return self.head(x)

def make(width: int = 16):
    return Net(width)
"""


def stack_files(folder: Path) -> tuple[Path, Path, Path]:
    """(code, folder of weights, data), written to ``folder``."""
    code, weights, data = folder / "stack_net.py", folder / "weights", folder / "data.npz"
    code.write_text(CODE)
    weights.mkdir()
    module = load_module(f"{code}:make", arguments={})
    generator = torch.Generator().manual_seed(0)
    values = {
        name: (torch.randn(p.shape, generator=generator) * 0.3 + ("norm" in name)).bfloat16()
        for name, p in module.state_dict().items()
    }
    shards = [weights / f"shard-{i}.safetensors" for i in range(2)]
    for number, shard in enumerate(shards):
        save_file({n: v for i, (n, v) in enumerate(values.items()) if i % 2 == number}, shard)
    (weights / "model.safetensors.index.json").write_text(index_text(shards))
    random = np.random.default_rng(0)
    mask = np.ones((10, TOKENS), dtype=np.int64)
    mask[3:6, 4:] = 0
    np.savez(data, tokens=random.integers(VOCABULARY, size=(10, TOKENS)), attention_mask=mask)
    return code, weights, data


def whole_module(code: Path, weights: Path) -> nn.Module:
    """The model in memory, float32."""
    from safetensors.torch import load_file

    module = load_module(f"{code}:make", arguments={})
    for shard in sorted(weights.glob("*.safetensors")):
        module.load_state_dict({n: v.float() for n, v in load_file(shard).items()}, strict=False)
    return module
