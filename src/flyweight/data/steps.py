"""Preprocessing steps on numbers: rescale, normalise, cast, rename."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

import numpy as np

from flyweight.errors import InputError

Columns = Mapping[str, np.ndarray | Sequence[Any]]  # column name -> one value an example, examples on axis 0

MAX_SELECTED_COLUMNS = 65_536  # bound on what an untrusted manifest may name


@runtime_checkable
class Step(Protocol):
    """One step: columns in, columns out. A frozen dataclass whose fields are JSON values."""

    kind: ClassVar[str]

    def __call__(self, columns: Columns) -> Columns:
        """The columns after the step; raises InputError naming the column and example that do not fit."""


def as_array(name: str, values: np.ndarray | Sequence[Any]) -> np.ndarray:
    """One column as a numeric or boolean array, examples on axis 0.

    Raises:
        InputError: It holds texts, files or objects, or its examples differ in shape.
    """
    if not isinstance(values, np.ndarray):
        _check_numeric(name, values)
        values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"input {name!r} holds {values.dtype} where numbers are needed; encode or drop the column"
        )
    return values


def _check_numeric(name: str, values: Sequence[Any]) -> None:
    """Raise InputError unless every example is a number or array, all of one shape."""
    for index, value in enumerate(values):
        if isinstance(value, str | bytes | Path):
            what = "an image file" if isinstance(value, Path) else "text"
            raise InputError(
                f"input {name!r}, example {index} is {what} ({str(value)!r:.80}) where numbers are needed"
            )
        if np.shape(value) != np.shape(values[0]):
            raise InputError(
                f"input {name!r}, example {index} is {np.shape(value)}, example 0 {np.shape(values[0])}; "
                "bring all to one size (images: resize and crop)"
            )


@final
@dataclass(frozen=True)
class Rescale:
    """Every value times ``factor``, as float32; 1/255 brings pixels to 0..1."""

    factor: float
    kind: ClassVar[str] = "rescale"

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor) or abs(self.factor) < np.finfo(np.float32).tiny:
            raise ValueError(f"rescale factor must be finite and not 0, got {self.factor}")

    def __call__(self, columns: Columns) -> Columns:
        """Every column, float32."""
        factor = np.float32(self.factor)
        return {name: as_array(name, values).astype(np.float32) * factor for name, values in columns.items()}


@final
@dataclass(frozen=True)
class Normalize:
    """``(value - mean) / std`` in float32, one mean and std for each entry of axis 1, or one for all.

    Axis 1 is the channel of (batch, channels, height, width) and the column of (examples, columns).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: ClassVar[str] = "normalize"

    def __post_init__(self) -> None:
        if not 1 <= len(self.mean) <= MAX_SELECTED_COLUMNS or len(self.mean) != len(self.std):
            raise ValueError(
                f"mean and std need the same number of values, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError("every mean must be finite")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ValueError("every std must be finite and above 0")

    def __call__(self, columns: Columns) -> Columns:
        """Every column, float32."""
        return {name: self._normalized(name, as_array(name, values)) for name, values in columns.items()}

    def _normalized(self, name: str, values: np.ndarray) -> np.ndarray:
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if len(mean) > 1:
            if values.ndim < 2 or values.shape[1] != len(mean):
                raise InputError(
                    f"input {name!r} has shape {values.shape}; mean and std hold {len(mean)} values, "
                    f"and {_channels_cure(values.shape, len(mean))}"
                )
            shape = (1, len(mean)) + (1,) * (values.ndim - 2)
            mean, std = mean.reshape(shape), std.reshape(shape)
        return np.asarray((values.astype(np.float32) - mean) / std)


def _channels_cure(shape: tuple[int, ...], wanted: int) -> str:
    if len(shape) < 2:
        return "needs channels or columns on axis 1"
    if len(shape) == 4 and shape[-1] == wanted:
        return "the channels come last: give --preprocess channels_last=true"
    return f"axis 1, of the channels, has {shape[1]}: give one value, or {shape[1]}"


@final
@dataclass(frozen=True)
class Cast:
    """Columns as ``dtype``.

    Attributes:
        dtype: What the model takes.
        columns: Which; () is all.
    """

    dtype: Literal["float32", "int64"] = "float32"
    columns: tuple[str, ...] = ()
    kind: ClassVar[str] = "cast"

    def __call__(self, columns: Columns) -> Columns:
        """All columns, the named ones cast; casting to int64 refuses what is not a whole number."""
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise InputError(
                f"the model takes an input {missing[0]!r}, and the data have {', '.join(columns)}; rename it"
            )
        named = self.columns or tuple(columns)
        return {
            name: self._cast(name, values) if name in named else values for name, values in columns.items()
        }

    def _cast(self, name: str, values: np.ndarray | Sequence[Any]) -> np.ndarray:
        array = as_array(name, values)
        if self.dtype == "float32":
            return array.astype(np.float32)
        return whole_numbers(name, array)


def whole_numbers(name: str, values: np.ndarray) -> np.ndarray:
    """``values`` as int64.

    Raises:
        InputError: One of them is not a whole number.
    """
    if values.dtype.kind == "f":
        fractional = np.flatnonzero(
            (~np.isfinite(values) | (values != np.rint(values))).any(axis=tuple(range(1, values.ndim)))
        )
        if fractional.size:
            raise InputError(
                f"input {name!r}, example {fractional[0]} is not whole; the model takes integers there"
            )
    return values.astype(np.int64)


@final
@dataclass(frozen=True)
class Rename:
    """The single column under another name: the one the model calls its input."""

    name: str
    kind: ClassVar[str] = "rename"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("the new name is empty")

    def __call__(self, columns: Columns) -> Columns:
        """One column called ``name``."""
        if len(columns) != 1:
            raise InputError(
                f"the model has one input, {self.name!r}, the data have {len(columns)}: {', '.join(columns)}"
            )
        return {self.name: next(iter(columns.values()))}
