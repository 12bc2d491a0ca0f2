"""The manifest of a streamed model: its files, and how they were made; its form is in docs/formats.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from flyweight._atomic import MANIFEST, write_text
from flyweight.core.json_text import parse_json
from flyweight.core.plan import Scalar
from flyweight.errors import ArtifactError

STREAMED_VERSION = 1
KIND = "streamed"
MAX_STREAMED_BYTES = 64_000_000
REST = "rest.safetensors"
INDEX = "model.safetensors.index.json"


@final
@dataclass(frozen=True, kw_only=True)
class StreamedManifest:
    """What is known of a streamed model besides its tensors.

    Attributes:
        flyweight: The release that wrote it.
        model: What was streamed, as it was named.
        blocks: Paths of the blocks, in order.
        shards: File of each block.
        technique: Name in the catalog.
        settings: Of the technique, all of them.
        files: Every file but the manifest: bytes and sha256.
        versions: Of the packages it was made with.
        created: Time, ISO 8601.
    """

    flyweight: str
    model: str
    blocks: tuple[str, ...]
    shards: tuple[str, ...]
    technique: str
    settings: Mapping[str, Scalar]
    files: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    created: str

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.shards):
            raise ValueError(f"{len(self.blocks)} blocks have {len(self.shards)} shards")
        lost = next((name for name in (*self.shards, REST) if name not in self.files), None)
        if lost is not None:
            raise ValueError(f"{lost} is not among the files")
        for name, entry in self.files.items():
            if "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"{name!r} is no plain file name")
            if set(entry) != {"bytes", "sha256"} or not isinstance(entry["bytes"], int):
                raise ValueError(f"{name} must have bytes and sha256")

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into a folder."""
        first = {"format_version": STREAMED_VERSION, "flyweight": self.flyweight, "kind": KIND}
        write_text(folder / MANIFEST, json.dumps(first | asdict(self), indent=1) + "\n")


def read_streamed_manifest(folder: Path) -> StreamedManifest:
    """The manifest in a folder.

    Raises:
        ArtifactError: There is none, or it is of another kind or version, or malformed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MANIFEST}; name a folder that `flyweight stream` wrote")
    try:
        raw = parse_json(path.read_text(encoding="utf-8"), str(path), max_bytes=MAX_STREAMED_BYTES)
        if not isinstance(raw, dict) or raw.get("kind") != KIND:
            raise ValueError(f"{path} is not of a streamed model")
        if raw.get("format_version") != STREAMED_VERSION:
            version = raw.get("format_version")
            raise ValueError(f"{path} is of version {version!r}; this release reads {STREAMED_VERSION}")
        own = {key: value for key, value in raw.items() if key not in {"format_version", "kind"}}
        wrong = set(own) ^ {field.name for field in fields(StreamedManifest)}
        if wrong:
            raise ValueError(f"{path} lacks, or has too much: {', '.join(sorted(wrong))}")
        return StreamedManifest(**{**own, "blocks": tuple(own["blocks"]), "shards": tuple(own["shards"])})
    except (TypeError, ValueError, OSError) as error:
        raise ArtifactError(str(error)) from error
