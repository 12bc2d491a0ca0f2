"""Artifacts on disk: a folder with a manifest that lists every file the device needs, with its digest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flyweight._atomic import MANIFEST, write_text
from flyweight.core.report import Artifact
from flyweight.errors import ArtifactError, InputError
from flyweight.run.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, TensorSpec

__all__ = [
    "FileEntry",
    "Manifest",
    "TensorSpec",
    "describe_files",
    "open_artifact",
    "read_manifest",
    "write_manifest",
]


_EXTERNAL_DATA = b"location"  # the key under which ONNX names a file with weights
_PIECE_BYTES = 1 << 20


def describe_files(folder: Path, names: Iterable[str]) -> Mapping[str, FileEntry]:
    """Size and digest of each named file of ``folder``, as `Manifest.files` holds them.

    Raises:
        ArtifactError: One is missing.
    """
    return {name: _entry(folder, name) for name in names}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into an existing folder; last, when all other files are there.

    Raises:
        InputError: It cannot be written.
        ValueError: A value of the manifest has no JSON form.
    """
    write_text(folder / MANIFEST, manifest.to_json())


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of the artifact in the folder ``path``; the other files are not looked at.

    Raises:
        InputError: There is no such folder.
        ArtifactError: It is not an artifact, or its manifest is damaged or of another version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder that compress or export wrote")
    try:
        return Manifest.from_json(_manifest_text(folder / MANIFEST))
    except ArtifactError as error:
        raise ArtifactError(f"{folder} cannot be used: {error}") from error


def open_artifact(path: str | Path, *, verify: bool = True) -> Artifact:
    """The artifact in the folder ``path``, after a check that its files are those its manifest lists.

    Args:
        verify: Compare digests, which reads every file once; sizes are compared in any case.

    Raises:
        InputError: There is no such folder.
        ArtifactError: It is not an artifact, or a file is missing, changed or outside of the folder.
    """
    folder, manifest = Path(path), read_manifest(path)
    for name, entry in manifest.files.items():
        if _size(folder, name) != entry.bytes or (verify and _entry(folder, name) != entry):
            raise ArtifactError(
                f"{folder} is damaged: {name} is not the file its manifest lists; copy or make it again"
            )
    if verify:
        _check_unlisted(folder, manifest)
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    return Artifact(
        path=folder,
        format=manifest.format,
        model_file=manifest.model_file,
        files=sizes | {MANIFEST: (folder / MANIFEST).stat().st_size},
        sha256=manifest.files[manifest.model_file].sha256,
    )


def _check_unlisted(folder: Path, manifest: Manifest) -> None:
    """No file that the manifest does not list is named in the model file, as one with weights would be."""
    listed = {(folder / name).resolve() for name in (MANIFEST, *manifest.files)}
    others = {
        os.fsencode(file.name): file.name
        for file in folder.rglob("*")
        if file.is_file() and file.resolve() not in listed
    }
    found = _named_in(_inside(folder, manifest.model_file), [_EXTERNAL_DATA, *others])
    if _EXTERNAL_DATA in found and len(found) > 1:
        name = next(others[raw] for raw in others if raw in found)
        raise ArtifactError(
            f"{folder} cannot be used: {manifest.model_file} reads weights from {name}, which the manifest "
            "does not list; make the artifact again"
        )


def _named_in(file: Path, names: Sequence[bytes]) -> set[bytes]:
    """Those of ``names`` that occur in a file, which is read piece by piece so as to take no memory."""
    longest, found, tail = max(map(len, names)), set[bytes](), b""
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            text = tail + piece
            found |= {name for name in names if name in text}
            tail = text[-longest:]
    return found


def _manifest_text(file: Path) -> str:
    if not file.is_file():
        raise ArtifactError(f"it holds no {MANIFEST}")
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"its {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"its {MANIFEST} cannot be read: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    """The file's path, links followed.

    Raises:
        ArtifactError: It leads out of the folder.
    """
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder} cannot be used: {name} lies outside of it")
    return file


def _size(folder: Path, name: str) -> int:
    file = _inside(folder, name)
    if not file.is_file():
        raise ArtifactError(f"{folder} is damaged: {name} is missing; copy or make it again")
    return file.stat().st_size


def _entry(folder: Path, name: str) -> FileEntry:
    size = _size(folder, name)
    try:
        with _inside(folder, name).open("rb") as stream:
            return FileEntry(size, hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise ArtifactError(f"{folder / name} cannot be read: {error.strerror}") from error
