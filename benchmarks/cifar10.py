"""CIFAR-10 and its ResNets, as a newcomer hands them to ``flyweight compress``; nothing of it is copied here.

Data: Krizhevsky 2009; models: akamaster's option-A ResNets. `load` and the factories read
them from the shared folder, which the environment variable ``FLYWEIGHT_SHARED`` names, or which
stands beside the repository.
"""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyweight.errors import InputError

SHARED_VARIABLE = "FLYWEIGHT_SHARED"
DEFAULT_SHARED = Path(__file__).resolve().parents[1].parent / "shared"

MEAN = np.array(
    [0.485, 0.456, 0.406], np.float32
)  # ImageNet's, over RGB / 255: what the models were trained with
STD = np.array([0.229, 0.224, 0.225], np.float32)
SHEET = 1000  # images on one sheet, 25 rows of 40 tiles of 32 x 32
TRAIN_SHEETS, TEST_SHEETS = (
    2,
    5,
)  # calibration draws on the train images; the visible test images are 5 sheets
ALL_TRAIN_SHEETS = 50


def shared_folder() -> Path:
    """Where the data and models are.

    Raises:
        InputError: There is no such folder.
    """
    folder = Path(os.environ.get(SHARED_VARIABLE, DEFAULT_SHARED))
    if not (folder / "data").is_dir():
        raise InputError(f"no folder data in {folder}: give the shared folder with --shared PATH")
    return folder


def images(shared: Path, split: str, *, sheets: int) -> np.ndarray:
    """(sheets * 1000, 32, 32, 3) uint8 RGB: the first images of ``"train"`` or ``"test"``.

    Raises:
        InputError: A sheet is missing.
    """
    from PIL import Image

    tiles = []
    for index in range(sheets):
        path = shared / "data" / "cifar10" / f"{split}_{index:02d}.webp"
        if not path.is_file():
            raise InputError(f"no CIFAR-10 sheet {path}")
        with Image.open(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        tiles.append(pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(SHEET, 32, 32, 3))
    return np.concatenate(tiles)


def labels(shared: Path, split: str, *, examples: int) -> np.ndarray:
    """(examples,) int64 classes of the first images."""
    path = shared / "data" / "cifar10" / f"{split}_labels.csv"
    with path.open(newline="") as file:
        return np.array([int(row["label"]) for row in csv.DictReader(file)][:examples], np.int64)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """(images, 3, 32, 32) float32 as the models take it, from (images, 32, 32, 3) uint8."""
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Data for ``--data benchmarks/cifar10.py:load``: 2000 train images, the 5000 visible test images."""
    return _parts(TRAIN_SHEETS)


def load_all() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same with all 50 000 train images, to train on."""
    return _parts(ALL_TRAIN_SHEETS)


def _parts(train_sheets: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    shared = shared_folder()
    train, test = images(shared, "train", sheets=train_sheets), images(shared, "test", sheets=TEST_SHEETS)
    return {
        "train": (normalised(train), labels(shared, "train", examples=len(train))),
        "evaluation": (normalised(test), labels(shared, "test", examples=len(test))),
    }


def resnet20() -> torch.nn.Module:
    """An untrained ResNet-20; its weights are ``converted/cifar10_resnet20.safetensors``."""
    return _resnet(3)


def resnet56() -> torch.nn.Module:
    """An untrained ResNet-56; its weights are ``converted/cifar10_resnet56.safetensors``."""
    return _resnet(9)


def _resnet(blocks: int) -> torch.nn.Module:
    module: torch.nn.Module = definitions().CifarResNet(blocks)
    return module


def definitions() -> Any:
    """The Python module of ``converted/defs.py``, with the classes of the shared models."""
    path = shared_folder() / "data" / "converted" / "defs.py"
    spec = importlib.util.spec_from_file_location("converted_defs", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"no model definitions {path}")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
