"""Values of a forward pass kept on a disk until they were read, so that memory holds one batch of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from flyweight._atomic import work_folder
from flyweight.errors import InputError

WORK_NAME = "flyweight-activations"
ALIGNMENT = 64  # bytes, that of torch's own memory: kernels must take the same path for both
SMALLEST = 4096  # bytes, a page of memory: less is not worth a place in a file


@final
@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a file, with the layout it had: sums of floats depend on it."""

    start: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@final
class _OnDisk(Sequence[Any]):
    """Values in one file, which goes when nobody holds them any more; the last one read stays in reach."""

    def __init__(self, path: Path, values: Iterable[Any]) -> None:
        self._path = path
        self._last: tuple[int, Any] = (-1, None)
        with path.open("xb") as file:
            self._entries = [self._written(file, value) for value in values]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        if self._last[0] != index:
            leaves, spec = self._entries[index]
            value = _pytree.tree_unflatten([self._read(leaf) for leaf in leaves], spec)
            self._last = (index, value)
        return self._last[1]

    def __del__(self) -> None:
        self._path.unlink(missing_ok=True)

    @staticmethod
    def _written(file: BinaryIO, value: Any) -> tuple[list[Any], Any]:
        leaves, spec = _pytree.tree_flatten(value)
        return [_put(file, leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec

    def _read(self, leaf: Any) -> Any:
        if not isinstance(leaf, _Place):
            return leaf
        # copy-on-write: what a block adds to its input in place must not reach the file
        mapped = np.memmap(self._path, np.uint8, mode="c", offset=leaf.start, shape=(leaf.nbytes,))
        return torch.from_numpy(mapped).view(leaf.dtype).as_strided(leaf.shape, leaf.strides)


def _put(file: BinaryIO, tensor: Tensor) -> Tensor | _Place:
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    span = 0 if tensor.numel() == 0 else steps + 1
    nbytes = span * tensor.element_size()
    if nbytes < SMALLEST:
        return tensor
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    start = file.tell()
    flat = tensor.detach().as_strided((span,), (1,), tensor.storage_offset())
    file.write(flat.view(torch.uint8).numpy().data)
    return _Place(start, nbytes, tensor.dtype, tuple(tensor.shape), tensor.stride())


@final
class DiskCache:
    """A folder of such files; its ``keep`` is a `flyweight.measure.walk.Keep`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = count()

    def keep(self, values: Iterable[Any]) -> Sequence[Any]:
        """The values, each written as it is computed; tensors come back memory-mapped.

        Raises:
            InputError: The disk is full, or cannot be written.
        """
        try:
            return _OnDisk(self._folder / f"{next(self._number)}.values", values)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"activations cannot be kept in {self._folder.parent}: {reason}") from error


@contextmanager
def disk_cache(parent: Path) -> Iterator[DiskCache]:
    """A cache in a folder of its own inside ``parent``, gone afterwards; what killed runs left is cleared.

    Raises:
        InputError: ``parent`` is no folder that can be written.
    """
    if not parent.is_dir():
        raise InputError(f"activations cannot be kept in {parent}: there is no such folder; name another")
    with work_folder(parent, WORK_NAME) as folder:
        yield DiskCache(folder)
