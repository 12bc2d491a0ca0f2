"""Preprocessing steps on images: decode, resize, crop, channels first.

Between these steps a column is an array (examples, height, width, channels) uint8, or, while sizes differ, a
list of arrays (height, width, channels).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, final

import numpy as np

from flyweight._optional import require
from flyweight.data.steps import Columns, as_array
from flyweight.errors import InputError

MAX_SIDE = 8192  # pixels; bound on what an untrusted manifest may ask for

_CHANNELS = {"RGB": 3, "L": 1}


@final
@dataclass(frozen=True)
class DecodeImage:
    """Image files, or arrays of pixels as they are, to uint8 images.

    Attributes:
        mode: ``"RGB"``, or ``"L"`` for one grey channel; files are converted, arrays must have its channels.
    """

    mode: Literal["RGB", "L"] = "RGB"
    kind: ClassVar[str] = "decode_image"

    def __call__(self, columns: Columns) -> Columns:
        """Every column as images; raises InputError naming an unreadable file."""
        return {name: self._decoded(name, values) for name, values in columns.items()}

    def _decoded(self, name: str, values: np.ndarray | Sequence[Any]) -> np.ndarray | Sequence[Any]:
        if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
            return self._checked(values if values.ndim == 4 else values[..., None], f"input {name!r}", 4)
        return [self._image(value, f"input {name!r}, example {index}") for index, value in enumerate(values)]

    def _image(self, value: object, where: str) -> np.ndarray:
        if isinstance(value, np.ndarray):
            return self._checked(value if value.ndim == 3 else value[..., None], where, 3)
        if isinstance(value, str | Path):
            return read_image(Path(value), self.mode)
        raise InputError(
            f"{where} is a {type(value).__name__}; give a file or a uint8 array (height, width, channels)"
        )

    def _checked(self, image: np.ndarray, where: str, ndim: int) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim != ndim or image.shape[-1] != _CHANNELS[self.mode]:
            raise InputError(
                f"{where} has shape {image.shape} and type {image.dtype}; "
                f"{self.mode} images are uint8 with {_CHANNELS[self.mode]} channels on the last axis"
            )
        return image


def read_image(path: Path, mode: str) -> np.ndarray:
    """The pixels of one file, (height, width, channels) uint8.

    Of 16 bits of grey the upper eight are kept.

    Raises:
        InputError: The file is missing, is no image, is damaged, is absurdly large, or has pixels of 32 bits.
        MissingDependency: Pillow is not installed.
    """
    image_module = _pillow()
    unreadable = (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        image_module.DecompressionBombError,
    )
    try:
        with image_module.open(path) as image:
            pixels = np.asarray(_eight_bits(image, image_module).convert(mode))
    except unreadable as error:
        raise InputError(f"cannot read the image {path}: {error}; replace the file or remove it") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _eight_bits(image: Any, image_module: ModuleType) -> Any:
    """The image with 8 bits a channel; Pillow's ``convert`` would make white of all 16-bit values over 255.

    Raises:
        ValueError: It has pixels of 32 bits, whose range is not known.
    """
    # Pillow reads 16-bit portable graymaps, and in old versions PNGs, as mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return image_module.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have 32 bits (mode {image.mode}); save it with 8 bits a channel")
    return image


def _pillow() -> ModuleType:
    return require("PIL.Image", extra="vision", purpose="decoding images")


@final
@dataclass(frozen=True)
class Resize:
    """Images resized by Pillow, which filters when it shrinks, as torchvision does on Pillow images.

    Attributes:
        size: (height, width), or the length of the shortest side with the aspect ratio kept.
        interpolation: Pillow's filter.
    """

    size: int | tuple[int, int]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    kind: ClassVar[str] = "resize"

    def __post_init__(self) -> None:
        for side in (self.size,) if isinstance(self.size, int) else self.size:
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"resize must be in 1..{MAX_SIDE} pixels, got {side}")

    def __call__(self, columns: Columns) -> Columns:
        """Every column resized."""
        return {
            name: [
                self._resized(image, f"input {name!r}, example {index}") for index, image in enumerate(values)
            ]
            for name, values in columns.items()
        }

    def _resized(self, image: np.ndarray, where: str) -> np.ndarray:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            raise InputError(f"{where} cannot be resized: it is no uint8 image (height, width, channels)")
        height, width = self._target(image.shape[0], image.shape[1])
        if (height, width) == image.shape[:2]:
            return image
        if max(height, width) > MAX_SIDE:
            raise InputError(
                f"{where} would become {height} x {width} pixels; the largest side allowed is {MAX_SIDE}"
            )
        pillow = _pillow()
        grey = image.shape[2] == 1
        resized = pillow.fromarray(image[..., 0] if grey else image).resize(
            (width, height), getattr(pillow.Resampling, self.interpolation.upper())
        )
        return np.asarray(resized)[..., None] if grey else np.asarray(resized)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        short = min(height, width)
        return int(self.size * height / short), int(self.size * width / short)


@final
@dataclass(frozen=True)
class CenterCrop:
    """The middle of each image; ``height`` and ``width`` in pixels."""

    height: int
    width: int
    kind: ClassVar[str] = "center_crop"

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"crop must be in 1..{MAX_SIDE} pixels, got {side}")

    def __call__(self, columns: Columns) -> Columns:
        """Every column cropped."""
        return {
            name: [
                self._cropped(image, f"input {name!r}, example {index}") for index, image in enumerate(values)
            ]
            for name, values in columns.items()
        }

    def _cropped(self, image: np.ndarray, where: str) -> np.ndarray:
        if not isinstance(image, np.ndarray) or image.ndim != 3:
            raise InputError(f"{where} cannot be cropped: it is no image (height, width, channels)")
        height, width = image.shape[:2]
        if height < self.height or width < self.width:
            raise InputError(
                f"{where} is {height} x {width} pixels, the crop {self.height} x {self.width}; resize first"
            )
        # Ties to even, as torchvision's center_crop rounds.
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        return image[top : top + self.height, left : left + self.width]


@final
@dataclass(frozen=True)
class ToChannelsFirst:
    """Channels from the last axis to axis 1; a missing channel axis is added."""

    kind: ClassVar[str] = "channels_first"

    def __call__(self, columns: Columns) -> Columns:
        """Every column, same type."""
        return {name: self._transposed(name, as_array(name, values)) for name, values in columns.items()}

    @staticmethod
    def _transposed(name: str, images: np.ndarray) -> np.ndarray:
        if images.ndim == 3:
            return images[:, None]
        if images.ndim != 4:
            raise InputError(
                f"input {name!r} has shape {images.shape}; images are (examples, height, width, channels)"
            )
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
