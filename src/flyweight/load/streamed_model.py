"""What `flyweight stream` wrote, back as a module that loads one block at a time, and as its blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from flyweight.errors import ArtifactError
from flyweight.export.shards import written
from flyweight.export.streamed_manifest import REST, StreamedManifest, read_streamed_manifest
from flyweight.load.shards import block_from_shard
from flyweight.load.streamed import Streamed, without_weights
from flyweight.load.tensor_files import TensorFiles, open_tensors
from flyweight.measure.stack import forwards
from flyweight.model import copied


def load_streamed(folder: Path | str, make: Callable[[], nn.Module]) -> StreamedModel:
    """The streamed model in a folder, as a module whose forward() holds one block in memory at a time.

    Args:
        folder: That ``flyweight stream`` wrote.
        make: Makes the module, as the factory did that was streamed. Nothing in the folder is run.

    Raises:
        ArtifactError: The folder is damaged, or belongs to another model.
    """
    path = Path(folder)
    manifest = read_streamed_manifest(path)
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise ArtifactError(f"{file} is missing or cut short; stream the model again")
    return StreamedModel(path, manifest, without_weights(make))


@final
class StreamedModel(nn.Module):
    """A model whose blocks are read from their shards when they are called.

    Attributes:
        manifest: How it was made.
    """

    def __init__(self, folder: Path, manifest: StreamedManifest, skeleton: nn.Module) -> None:
        super().__init__()
        self.manifest = manifest
        self._folder = folder
        self._checked: set[str] = set()
        # in lists: their parameters are no parameters of this module
        self._skeleton = [skeleton]
        paths = {name for name, _ in skeleton.named_modules()}
        lost = next((block for block in manifest.blocks if block not in paths), None)
        if lost is not None:
            raise ArtifactError(f"{folder} has a block {lost!r}, which the model that was made has not")
        self._blocks = [copied(skeleton.get_submodule(block)) for block in manifest.blocks]
        self._rest = Streamed(skeleton, self._files(REST))
        self.eval()

    def block(self, index: int) -> nn.Module:
        """One block, its encoded layers frozen.

        Raises:
            ArtifactError: Its shard is damaged.
        """
        self._check(self.manifest.shards[index])
        path = self.manifest.blocks[index]
        return block_from_shard(self._blocks[index], path, self._folder / self.manifest.shards[index])

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the original's; each block is loaded when it is called, and let go of."""
        skeleton = self._skeleton[0]
        readers = {path: self._reader(index) for index, path in enumerate(self.manifest.blocks)}
        with self._rest.resident(outside(skeleton, self.manifest.blocks)), forwards(skeleton, readers):
            return skeleton(*args, **kwargs)

    def _reader(self, index: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.block(index)(*args, **kwargs)

    def _files(self, name: str) -> TensorFiles:
        self._check(name)
        return open_tensors(self._folder / name)

    def _check(self, name: str) -> None:
        """Compare a file's digest, the first time it is read."""
        if name in self._checked:
            return
        expected: Mapping[str, Any] = self.manifest.files[name]
        if written(self._folder / name).sha256 != expected["sha256"]:
            raise ArtifactError(f"{self._folder / name} is damaged: its digest is another; stream it again")
        self._checked.add(name)


def outside(module: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Paths of the modules with parameters or buffers of their own that belong to no block."""
    inside = {id(m) for path in blocks for m in module.get_submodule(path).modules()}
    return [
        path
        for path, m in module.named_modules()
        if id(m) not in inside and (any(p is not None for p in m._parameters.values()) or m._buffers)
    ]
