"""Tensors written to safetensors files one after the other, and what is said of encoded ones.

The format is that of https://github.com/huggingface/safetensors: the length of a header, the header in JSON,
the tensors' bytes. Its own writer holds all tensors in memory twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from flyweight.core.json_text import parse_json
from flyweight.errors import ArtifactError
from flyweight.tensors.packed import Description

SHARD_VERSION = 1
ABOUT = "flyweight"  # key of the metadata
MAX_ABOUT_BYTES = 16_000_000
CHUNK_BYTES = 2**22
HEADER_MULTIPLE = 8  # bytes: so that tensors begin where any of their types may

_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@final
@dataclass(frozen=True)
class Written:
    """A file that is whole."""

    nbytes: int
    sha256: str


@final
@dataclass(frozen=True)
class EncodedEntry:
    """A layer whose weight is stored encoded, and the technique that encoded it."""

    technique: str
    description: Description


def write_shard(path: Path, tensors: Mapping[str, Tensor], encoded: Mapping[str, EncodedEntry]) -> Written:
    """Write a shard; it is there whole or not at all.

    Args:
        path: To write.
        tensors: By name; of an encoded weight ``NAME.weight.FIELD``.
        encoded: By name of the layer.
    """
    about = {"version": SHARD_VERSION, "encoded": {name: asdict(entry) for name, entry in encoded.items()}}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", ABOUT: json.dumps(about)}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_MULTIPLE)
    partial = path.with_name(path.name + ".partial")
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        pieces = [len(text).to_bytes(8, "little"), text]
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        for tensor in tensors.values():
            view = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
            for start in range(0, len(view), CHUNK_BYTES):
                file.write(view[start : start + CHUNK_BYTES])
                digest.update(view[start : start + CHUNK_BYTES])
        nbytes = file.tell()
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return Written(nbytes, digest.hexdigest())


def written(path: Path) -> Written:
    """Size and digest of a file as it is."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            digest.update(piece)
        return Written(file.tell(), digest.hexdigest())


def encoded_entries(path: Path) -> dict[str, EncodedEntry]:
    """The encoded layers of a shard, by name.

    Raises:
        ArtifactError: It is no shard of ours, of another version, or malformed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ABOUT, "")
        raw = parse_json(text, path.name, max_bytes=MAX_ABOUT_BYTES)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or no shard of a streamed model ({error})") from error
    if not isinstance(raw, dict) or raw.get("version") != SHARD_VERSION or set(raw) != {"version", "encoded"}:
        raise ArtifactError(f"{path} is of another version; this release reads {SHARD_VERSION}")
    try:
        return {name: _entry(entry) for name, entry in raw["encoded"].items()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} is malformed: {error}") from error


def _entry(raw: Any) -> EncodedEntry:
    about = raw["description"]
    packed = {name: (tuple(shape), dtype) for name, (shape, dtype) in about["packed"].items()}
    description = Description(
        kind=about["kind"], form=about["form"], shape=tuple(about["shape"]), packed=packed
    )
    return EncodedEntry(str(raw["technique"]), description)
