"""Modules with encoded weights out of the shards of a streamed model."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from flyweight.errors import ArtifactError
from flyweight.export.shards import EncodedEntry, encoded_entries
from flyweight.load.tensor_files import TensorFiles, open_tensors
from flyweight.model import copied
from flyweight.tensors.encoded import EncodedLayer, Layer, exchange
from flyweight.tensors.packed import joined


def block_from_shard(skeleton: nn.Module, path: str, shard: Path) -> nn.Module:
    """A block whose encoded layers hold their codes, and whose other weights are float32.

    Args:
        skeleton: The block without weights; it is left as it is.
        path: The block's name in the model.
        shard: From `flyweight.export.shards.write_shard`.

    Raises:
        ArtifactError: The shard is damaged, or does not fit the block.
    """
    block, files, encoded = copied(skeleton), open_tensors(shard), encoded_entries(shard)
    prefix = f"{path}."
    try:
        for name, entry in encoded.items():
            _put_encoded(block, name.removeprefix(prefix), name, entry, files)
        for name in files.tensors:
            if not any(name.startswith(f"{layer}.weight.") for layer in encoded):
                _put(block, name.removeprefix(prefix), files.floats(name))
    except (ValueError, AttributeError, KeyError) as error:
        raise ArtifactError(f"{shard} does not fit block {path!r}: {error}") from error
    empty = next((n for n, p in block.named_parameters() if p.is_meta and not _is_encoded(block, n)), None)
    if empty is not None:
        raise ArtifactError(f"{shard} lacks {prefix}{empty}")
    return block


def _put_encoded(block: nn.Module, inner: str, name: str, entry: EncodedEntry, files: TensorFiles) -> None:
    start = f"{name}.weight."
    fields = [tensor for tensor in files.tensors if tensor.startswith(start)]
    weight = joined(entry.description, {tensor.removeprefix(start): files.own(tensor) for tensor in fields})
    layer = cast("Layer", block.get_submodule(inner))
    own = tuple(layer.weight.shape)
    if own != entry.description.shape:
        raise ValueError(f"{name} is of shape {entry.description.shape}, the model's {own}")
    encoded = EncodedLayer(layer)
    encoded.frozen, encoded.technique = weight, entry.technique
    exchange(block, layer, encoded)


def _put(block: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    module = block.get_submodule(path)
    owner = module.layer if isinstance(module, EncodedLayer) else module
    if last in owner._buffers:
        owner._buffers[last] = value
        return
    own = owner._parameters[last]
    if own is None or own.shape != value.shape:
        raise ValueError(f"{name} is of shape {tuple(value.shape)}, which the model's is not")
    owner._parameters[last] = nn.Parameter(value, requires_grad=False)


def _is_encoded(block: nn.Module, parameter: str) -> bool:
    """Whether it is the float weight of an encoded layer, which has none."""
    path, _, name = parameter.rpartition(".")
    outer, _, last = path.rpartition(".")
    return name == "weight" and last == "layer" and isinstance(block.get_submodule(outer), EncodedLayer)
