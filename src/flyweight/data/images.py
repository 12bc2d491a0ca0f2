"""Image files: a folder a class, below ``train`` and ``test`` (or ``val``) folders where the data are split.

Classes are numbered in the sorted order of their folders' names, as torchvision's ImageFolder does. Files are
decoded later, by the preprocessing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flyweight.data.splits import is_part, select_parts
from flyweight.data.targets import Labelled
from flyweight.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
INPUT_NAME = "image"


def read_images(folder: Path) -> dict[str, Labelled]:
    """The parts of an image folder, labelled with the names of the class folders.

    Raises:
        InputError: There are no class folders, or no images in them.
    """
    parts = select_parts({path.name: path for path in _folders(folder) if is_part(path.name)}) or {
        "train": folder
    }
    return {use: _labelled(path) for use, path in parts.items()}


def list_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, sorted.

    Raises:
        InputError: There is none.
    """
    found = sorted(path for path in folder.rglob("*") if is_image(path))
    if not found:
        raise InputError(f"{folder} holds no image; files are known by their suffix: {' '.join(SUFFIXES)}")
    return found


def is_image(path: Path) -> bool:
    """Whether the name is one of an image, and not of a hidden file."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def holds_images(folder: Path) -> bool:
    """Whether there is an image in the folder or in one of the two levels below it."""
    return any(is_image(path) for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(pattern))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labelled(folder: Path) -> Labelled:
    by_class = {path.name: sorted(p for p in path.rglob("*") if is_image(p)) for path in _folders(folder)}
    files = [path for images in by_class.values() for path in images]
    if not files:
        raise InputError(
            f"{folder} holds no folders with images; put the images of each class in a folder of its name"
        )
    labels = np.repeat(list(by_class), [len(images) for images in by_class.values()])
    return Labelled({INPUT_NAME: files}, labels)
