"""MNIST and Caffe's LeNet-5, as `flyweight` opens them; nothing of it is copied here.

Data: LeCun, Cortes and Burges 1998, in their idx files.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

from benchmarks.cifar10 import definitions, shared_folder
from flyweight.errors import InputError

SCALE = 1 / 256  # of a pixel: what the model was trained with
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the values in an idx file
SIDE = 28


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Data for ``--data benchmarks/mnist.py:load``: 60 000 train images, 10 000 test images."""
    folder = shared_folder() / "data" / "mnist"
    return {
        part: (
            images(folder / f"{stem}-images-idx3-ubyte.gz"),
            labels(folder / f"{stem}-labels-idx1-ubyte.gz"),
        )
        for part, stem in (("train", "train"), ("evaluation", "t10k"))
    }


def images(path: Path) -> np.ndarray:
    """(images, 1, 28, 28) float32 in 0..1."""
    pixels = _values(path, IMAGE_HEADER).reshape(-1, 1, SIDE, SIDE)
    return pixels.astype(np.float32) * np.float32(SCALE)


def labels(path: Path) -> np.ndarray:
    """(images,) int64 digits."""
    return _values(path, LABEL_HEADER).astype(np.int64)


def lenet5() -> torch.nn.Module:
    """An untrained LeNet-5; its weights are ``converted/mnist_lenet5.safetensors``."""
    module: torch.nn.Module = definitions().LeNet5()
    return module


def _values(path: Path, header: int) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"no file {path}: give the folder that holds data/ with --shared PATH")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
