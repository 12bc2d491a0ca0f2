"""A small network with data, as files, and the command line in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flyweight import cli_command
from flyweight.cli import app

FEATURES, CLASSES, EXAMPLES = 64, 3, 120

NETS = f"""
import torch
from torch import nn

def net(hidden: int = 128) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear({FEATURES}, hidden), nn.ReLU(), nn.Linear(hidden, {CLASSES}))

def image_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))

def breaks():
    raise ValueError("no weights today")

def text():
    return "not a module"
"""


def call(capsys: pytest.CaptureFixture[str], arguments: Sequence[str | Path]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command line."""
    capsys.readouterr()
    code = cli_command.run(app, [str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def network() -> nn.Module:
    """What ``nets.py:net`` makes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, CLASSES))


@torch.no_grad()
def write_files(folder: Path) -> None:
    """``nets.py``, ``net.safetensors``, ``new.npz``, and ``data.npz`` with the labels the network gives."""
    (folder / "nets.py").write_text(NETS)
    save_file(network().state_dict(), folder / "net.safetensors")
    x = np.random.default_rng(0).standard_normal((EXAMPLES, FEATURES)).astype(np.float32)
    y = network()(torch.from_numpy(x)).argmax(dim=1).numpy()
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "new.npz", x=x[:5])
