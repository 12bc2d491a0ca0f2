"""How far a streamed quantization got: which shards are whole, and for which request they were made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

import flyweight
from flyweight._atomic import UNFINISHED_SUFFIX, write_text
from flyweight.core.json_text import parse_json
from flyweight.errors import InputError
from flyweight.export.shards import Written, written
from flyweight.load.tensor_files import TensorFiles

if TYPE_CHECKING:
    from flyweight.streaming import StreamSettings

JOURNAL = "progress.json"
JOURNAL_VERSION = 1
MAX_JOURNAL_BYTES = 16_000_000


@final
class Journal:
    """Written anew after each shard.

    Attributes:
        done: Shards that are whole, in order.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], done: dict[str, Written]) -> None:
        self._path, self._request = path, request
        self.done = done
        self._write()

    def add(self, name: str, shard: Written) -> None:
        """Note one more shard."""
        self.done[name] = shard
        self._write()

    def remove(self) -> None:
        """All is done."""
        self._path.unlink()

    def _write(self) -> None:
        done = {name: [shard.nbytes, shard.sha256] for name, shard in self.done.items()}
        content = {"version": JOURNAL_VERSION, "request": self._request, "done": done}
        write_text(self._path, json.dumps(content, indent=1) + "\n")


def request_of(
    settings: StreamSettings, files: TensorFiles, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Any]:
    """All that the shards depend on, but for the model's code; files by name, size and time."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    states = {str(file): file.stat() for file in files.files}
    return {
        "flyweight": flyweight.__version__,
        "model": settings.model,
        "model_arguments": dict(settings.model_arguments),
        "weights": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
        "data": digest.hexdigest(),
        "technique": settings.technique,
        "technique_settings": dict(settings.technique_settings),
        "stack": settings.stack,
        "batch_size": settings.batch_size,
    }


def open_journal(folder: Path, request: Mapping[str, Any], *, restart: bool) -> Journal:
    """The journal in a folder that is being filled, with the shards that are whole by their digests.

    Args:
        folder: Unfinished.
        request: From `request_of`.
        restart: Forget a run that was asked something else.

    Raises:
        InputError: The folder holds a run that was asked something else.
    """
    path = folder / JOURNAL
    found = _read(path)
    if found is None:
        return Journal(path, request, {})
    differing = [key for key in request if found["request"].get(key) != request[key]]
    if differing and not restart:
        out = folder.name.removesuffix(UNFINISHED_SUFFIX)
        raise InputError(
            f"{folder} holds a run towards {out} with another {differing[0]}: repeat that run, or begin anew "
            "with --overwrite"
        )
    done: dict[str, Written] = {}
    for name, (nbytes, sha256) in () if differing else found["done"].items():
        shard = Written(nbytes, sha256)
        if not (folder / name).is_file() or written(folder / name) != shard:
            break
        done[name] = shard
    return Journal(path, request, done)


def _read(path: Path) -> dict[str, Any] | None:
    """The journal's content; None where there is none that this release wrote."""
    if not path.is_file():
        return None
    try:
        raw = parse_json(path.read_text(encoding="utf-8"), str(path), max_bytes=MAX_JOURNAL_BYTES)
    except (ValueError, OSError):
        return None
    whole = isinstance(raw, dict) and raw.get("version") == JOURNAL_VERSION
    return raw if whole and isinstance(raw, dict) else None
