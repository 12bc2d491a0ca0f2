"""Rows that occur in two splits, found by the content of their inputs."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError

# 64 bits: a million rows against a million collide by chance with a probability of 5e-8.
_DIGEST_BYTES = 8
_SHOWN = 5


@final
@dataclass(frozen=True)
class Leak:
    """Evaluation examples that another split holds too.

    Attributes:
        first: The other split, ``"train"`` or ``"calibration"``.
        second: ``"evaluation"``.
        rows: Examples of ``second`` whose inputs also occur in ``first``.
        of: Examples of ``second``.
        examples: Up to five pairs (index in ``first``, index in ``second``).
    """

    first: str
    second: str
    rows: int
    of: int
    examples: tuple[tuple[int, int], ...]

    @property
    def sentence(self) -> str:
        """One sentence for the report."""
        pairs = ", ".join(f"{b} (= {self.first} {a})" for a, b in self.examples)
        more = ", ..." if self.rows > _SHOWN else ""
        return (
            f"{self.rows} of {self.of} {self.second} examples are in the {self.first} data too, "
            f"so quality measured on them flatters: {self.second} {pairs}{more}"
        )


def find_leaks(splits: Splits) -> tuple[Leak, ...]:
    """Overlaps of the evaluation examples with the training and with the calibration examples.

    Equal are image files with the same bytes, texts that differ in white space or Unicode composition only,
    numbers of one value, and arrays with the same shape and bytes. Targets are not compared.

    Raises:
        InputError: An image file cannot be read.
    """
    evaluation = row_digests(splits.evaluation)
    others = (("train", splits.train), ("calibration", splits.calibration))
    found = (_overlap(name, row_digests(examples), evaluation) for name, examples in others)
    return tuple(leak for leak in found if leak is not None)


def _overlap(name: str, first: np.ndarray, second: np.ndarray) -> Leak | None:
    shared = np.flatnonzero(np.isin(second, first))
    if not shared.size:
        return None
    positions = {int(digest): index for index, digest in reversed(list(enumerate(first)))}
    pairs = tuple((positions[int(second[index])], int(index)) for index in shared[:_SHOWN])
    return Leak(name, "evaluation", int(shared.size), len(second), pairs)


def row_digests(examples: Examples) -> np.ndarray:
    """(examples,) uint64 digest of the inputs of each example; see `find_leaks` for what is equal.

    Raises:
        InputError: An image file cannot be read.
    """
    scalars = {
        name: v
        for name, v in examples.inputs.items()
        if isinstance(v, np.ndarray) and v.ndim == 1 and v.dtype.kind in "biuf"
    }
    digests = [
        _column_digests(values) for name, values in sorted(examples.inputs.items()) if name not in scalars
    ]
    if scalars:
        matrix = np.stack([scalars[name].astype(np.float64) for name in sorted(scalars)], axis=1)
        digests.append(_array_digests(matrix + 0.0))  # adding 0 makes -0 and 0 one value
    if len(digests) == 1:
        return digests[0]
    return _array_digests(np.stack(digests, axis=1))


def _column_digests(values: np.ndarray | Sequence[Any]) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return _array_digests(values)
    return _packed(_digest(_content(value)) for value in values)


def _array_digests(values: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:]))
    return _packed(_digest(row.data) for row in rows)


def _content(value: object) -> bytes:
    if isinstance(value, Path):
        try:
            return value.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {value}: {error.strerror}") from error
    if isinstance(value, np.ndarray):
        return repr((value.shape, value.dtype.str)).encode() + np.ascontiguousarray(value).tobytes()
    text = value if isinstance(value, str) else repr(value)
    return " ".join(unicodedata.normalize("NFC", text).split()).encode("utf-8", "surrogatepass")


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _packed(digests: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), dtype="<u8")
