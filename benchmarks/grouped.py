"""A ResNeXt-like network on which int8 is slower: ONNX Runtime's fast grouped convolution is float."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

CHANNELS, GROUPS, LAYERS = 16, 4, 4
SIDE, CLASSES = 32, 10
EXAMPLES = 512


def network() -> nn.Module:
    """Seeded and untrained: it is about speed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU()]
        for _ in range(LAYERS):
            layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=GROUPS), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES))


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Seeded noise with the network's own answers as labels, train and evaluation."""
    generator, net = np.random.default_rng(0), network()
    return {part: _noise(generator, net) for part in ("train", "evaluation")}


def _noise(generator: np.random.Generator, net: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    images = generator.standard_normal((EXAMPLES, 3, SIDE, SIDE), dtype=np.float32)
    with torch.no_grad():
        return images, net(torch.from_numpy(images)).argmax(dim=1).numpy()
