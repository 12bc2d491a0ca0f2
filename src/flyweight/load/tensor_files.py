"""Tensors in safetensors files, memory-mapped: read by name when they are needed, never all at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from flyweight.core.json_text import parse_json
from flyweight.errors import InputError
from flyweight.load.weights import SAFETENSORS_SUFFIX

INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_BYTES = 64_000_000
MAX_HEADER_BYTES = 100_000_000  # as the format limits it


@final
@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@final
@dataclass(frozen=True)
class TensorFiles:
    """Tensors by name in one or several files."""

    tensors: Mapping[str, Stored]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(stored.file for stored in self.tensors.values()))

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, backed by the mapped file.

        Raises:
            InputError: The file is damaged.
        """
        stored = self.tensors[name]
        with _opened(stored.file) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def own(self, name: str) -> Tensor:
        """The tensor in memory of its own."""
        return self.read(name).clone()

    def floats(self, name: str) -> Tensor:
        """The tensor in memory of its own; float32 if it is of floating point."""
        stored = self.read(name)
        dtype = torch.float32 if stored.is_floating_point() else stored.dtype
        return torch.empty(stored.shape, dtype=dtype).copy_(stored)


def open_tensors(path: Path) -> TensorFiles:
    """The tensors of a file, of an index of shards, or of a folder that holds either.

    Args:
        path: ``model.safetensors``, ``model.safetensors.index.json``, or a folder.

    Raises:
        InputError: There is no such file, a shard is missing or damaged, or two files hold one name.
    """
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        files = sorted(path.glob(f"*{SAFETENSORS_SUFFIX}"))
        if len(indices) > 1 or not (indices or files):
            what = f"{len(indices)} indices" if indices else "no safetensors file"
            raise InputError(f"weights {path} is a folder with {what}; name the file or the index")
        return _indexed(indices[0]) if indices else _of_files(files)
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    if path.name.endswith(INDEX_SUFFIX):
        return _indexed(path)
    if path.suffix != SAFETENSORS_SUFFIX:
        raise InputError(
            f"weights file {path} cannot be mapped: name a {SAFETENSORS_SUFFIX} file, an index of shards "
            f"(…{INDEX_SUFFIX}), or the folder they are in"
        )
    return _of_files([path])


def index_text(files: Sequence[Path]) -> str:
    """The index of the tensors in some files of one folder."""
    names = {tensor: file.name for file in files for tensor in _names(file)}
    total = sum(file.stat().st_size for file in files)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=1) + "\n"


def _of_files(files: list[Path]) -> TensorFiles:
    found: dict[str, Stored] = {}
    for file in files:
        for name, stored in _names(file).items():
            if name in found:
                raise InputError(f"tensor {name!r} is in {found[name].file} and in {file}; name one of them")
            found[name] = stored
    return TensorFiles(found)


def _indexed(path: Path) -> TensorFiles:
    try:
        raw = parse_json(path.read_text(encoding="utf-8"), path.name, max_bytes=MAX_INDEX_BYTES)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    weights = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise InputError(f"{path} is no index of shards: it has no 'weight_map' of names to files")
    shards = {name: path.parent / name for name in dict.fromkeys(weights.values())}
    outside = next((n for n, f in shards.items() if f.parent != path.parent), None)
    if outside is not None:
        raise InputError(f"{path} names the shard {outside!r}, which is not in its folder")
    missing = [name for name, file in shards.items() if not file.is_file()]
    if missing:
        raise InputError(f"{len(missing)} of {len(shards)} shards of {path} are missing: {missing[0]}, ...")
    held = {name: _names(file) for name, file in shards.items()}
    lost = next((tensor for tensor, shard in weights.items() if tensor not in held[shard]), None)
    if lost is not None:
        raise InputError(f"tensor {lost!r} is not in {shards[weights[lost]]}, where {path.name} has it")
    return TensorFiles({tensor: held[shard][tensor] for tensor, shard in weights.items()})


def _names(path: Path) -> dict[str, Stored]:
    """Tensors of one file, from its header; whether it is whole is checked too."""
    with _opened(path):
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
    return {
        name: Stored(path, tuple(about["shape"]), about["dtype"])
        for name, about in header.items()
        if name != "__metadata__"
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged, cut short or no safetensors file ({error}); copy or make it again"
        ) from error
