"""What runtimes check before they run: the threads they are given and the arrays they are fed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from flyweight.errors import InputError
from flyweight.run.manifest import ANY_SIZE, TensorSpec


def thread_count(threads: int) -> int:
    """``threads``, or as many as cores this process may use for 0.

    Raises:
        ValueError: It is negative.
    """
    if threads < 0:
        raise ValueError(f"threads must be at least 0, got {threads}")
    return threads or _available_cores()


def _available_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@final
class InputCheck:
    """Called on named arrays, raises when they are not what a model takes; microseconds when they are."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = {spec.name: (spec, np.dtype(spec.dtype)) for spec in specs}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Nothing.

        Raises:
            InputError: An input is missing, unknown, or of another dtype or shape; says which and how.
        """
        if arrays.keys() != self._specs.keys():
            raise InputError(self._wrong_names(arrays))
        bound: dict[str, int] = {}
        for name, (spec, dtype) in self._specs.items():
            array = arrays[name]
            if array.dtype != dtype or not _fits(spec.shape, array.shape, bound):
                given = f"{array.dtype} ({', '.join(map(str, array.shape))})"
                sizes = f" where {', '.join(f'{k} is {v}' for k, v in bound.items())}" if bound else ""
                raise InputError(f"input {name!r} must be {spec}{sizes}, got {given}")

    def _wrong_names(self, arrays: Mapping[str, np.ndarray]) -> str:
        takes = f"the model takes {', '.join(self._specs)}"
        missing = [name for name in self._specs if name not in arrays]
        if missing:
            return f"input {missing[0]!r} is missing: {takes}"
        unknown = [name for name in arrays if name not in self._specs]
        return f"there is no input {unknown[0]!r}: {takes}"


def _fits(wanted: tuple[int | str, ...], given: tuple[int, ...], bound: dict[str, int]) -> bool:
    """Whether the sizes agree; names seen for the first time are added to ``bound`` in place."""
    if len(wanted) != len(given):
        return False
    for want, size in zip(wanted, given, strict=True):
        if isinstance(want, str):
            if want != ANY_SIZE and bound.setdefault(want, size) != size:
                return False
        elif want != size:
            return False
    return True
