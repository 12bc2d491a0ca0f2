"""Quantize a model that does not fit into memory, block by block, top to bottom.

open -> route (what blocks read) -> for each block: load, quantize, write, compute what the next reads -> rest
Weights stay in their files until their block is reached; activations are kept in memory, or on a disk. A run
that was killed goes on at the first block that is not written whole.
"""

from __future__ import annotations

import gc
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

import flyweight
from flyweight import catalog
from flyweight._atomic import check_replaceable, kept_folder, write_text
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.core.protocols import Technique
from flyweight.data.root_inputs import read_root_inputs
from flyweight.errors import InputError, UnsupportedError
from flyweight.evaluate.machine import versions
from flyweight.export.shards import EncodedEntry, Written, write_shard, written
from flyweight.export.streamed_manifest import INDEX, REST, StreamedManifest
from flyweight.load.shards import block_from_shard
from flyweight.load.streamed import Streamed, streamed, without_weights
from flyweight.load.streamed_model import outside
from flyweight.load.tensor_files import index_text, open_tensors
from flyweight.measure.block_call import PART, BlockInputs, block_model, block_module, outputs_of
from flyweight.measure.cache import disk_cache
from flyweight.measure.stack import Route, find_stack, route
from flyweight.measure.walk import Batches, Keep
from flyweight.memory_cap import memory_cap
from flyweight.model import Model
from flyweight.progress import SILENT, Progress
from flyweight.streaming_journal import Journal, open_journal, request_of
from flyweight.tensors.encoded import LAYERS, encoded_layers, obstacle
from flyweight.tensors.packed import taken_apart
from flyweight.user_code import user_object

DEFAULT_BATCH_SIZE = 4
MASKS = ("attention_mask",)  # root inputs that techniques look for: which tokens count


@final
@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What to stream, and how.

    Attributes:
        model: ``file.py:factory`` or ``package.module:name``, which makes the module; or its name only.
        weights: A safetensors file, an index of shards, or a folder of either.
        out: Folder to write.
        data: Calibration inputs: .npz, .npy or ``file.py:loader``; None for techniques that need none.
        technique: Of the stage QUANTIZE, by its name in the catalog.
        technique_settings: Over its defaults.
        model_arguments: Of the factory.
        stack: Path of the list of blocks; None is the one with the most weights.
        examples: Calibration examples at most; None is all.
        batch_size: Examples that are computed together.
        cache_dir: Folder to keep activations in; None keeps them in memory.
        max_memory_bytes: Bound of the memory of the process; None is unbounded.
        overwrite: Replace a model that was streamed before, or one that was begun with other settings.

    Raises:
        ValueError: A number is below 1.
    """

    model: str
    weights: Path
    out: Path
    data: str | None = None
    technique: str = "gptq"
    technique_settings: Mapping[str, Scalar] = field(default_factory=dict)
    model_arguments: Mapping[str, Scalar] = field(default_factory=dict)
    stack: str | None = None
    examples: int | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    cache_dir: Path | None = None
    max_memory_bytes: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("examples", "batch_size", "max_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@runtime_checkable
class QuantizesParts(Protocol):
    """A technique that takes the float model's values beside those of the quantized one."""

    def apply_to_part(
        self,
        model: Model,
        decision: Decision,
        batches: Batches,
        *,
        float_batches: Batches | None,
        keep: Keep,
    ) -> None:
        """As `Technique.apply`; ``float_batches`` and ``keep`` as for `flyweight.measure.walk.walk`."""


def stream(
    settings: StreamSettings,
    *,
    make: Callable[[], nn.Module] | None = None,
    progress: Progress = SILENT,
) -> StreamedManifest:
    """Quantize the blocks of a model one after the other and write ``settings.out``.

    Args:
        settings: What, and how.
        make: Makes the module; ``settings.model`` is then only its name.
        progress: Told of each block.

    Raises:
        InputError: Model, weights, data or folder cannot be used, or memory does not suffice.
        UnsupportedError: The blocks are no chain, or the technique cannot be used on blocks.
        ValueError: The technique is unknown.
    """
    check_replaceable(settings.out, overwrite=settings.overwrite)
    technique = _technique(settings)
    with _activations(settings.cache_dir) as keep, memory_cap(settings.max_memory_bytes, "--max-memory"):
        with progress.stage("Opening the model"):
            module = without_weights(make or (lambda: _made(settings)))
            source = streamed(module, open_tensors(settings.weights), str(settings.weights))
            blocks = find_stack(module, settings.stack)
            batches = _batches(settings, module)
        request = request_of(settings, source.files, batches)
        with kept_folder(settings.out, overwrite=settings.overwrite) as folder:
            journal = open_journal(folder, request, restart=settings.overwrite)
            work = _Work(settings, source, blocks, technique, keep, folder)
            with _keeping_blocks(work, journal):
                _quantize_blocks(work, journal, batches, progress)
            with progress.stage("Writing what is outside of the blocks"):
                manifest = _finish(work, journal)
    return manifest


@final
@dataclass(frozen=True, eq=False)
class _Work:
    settings: StreamSettings
    source: Streamed
    blocks: tuple[str, ...]
    technique: Technique
    keep: Keep
    folder: Path

    def shard(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"


def _technique(settings: StreamSettings) -> Technique:
    try:
        technique: Technique = catalog.get("technique", settings.technique)()
    except ValueError as error:
        raise InputError(str(error)) from error
    if technique.stage != Stage.QUANTIZE:
        raise InputError(
            f"{technique.name} belongs to stage {technique.stage.name.lower()}: streaming takes techniques "
            "that quantize weights, such as gptq and weight_only"
        )
    return technique


def _made(settings: StreamSettings) -> nn.Module:
    with user_object(settings.model) as factory:
        module = factory(**settings.model_arguments) if callable(factory) else factory
    if not isinstance(module, nn.Module):
        raise InputError(f"{settings.model} gave a {type(module).__name__}; it must return an nn.Module")
    return module


def _batches(settings: StreamSettings, module: nn.Module) -> list[Mapping[str, Tensor]]:
    if settings.data is None:
        return []
    parameters = [p for p in inspect.signature(module.forward).parameters.values() if p.kind != p.VAR_KEYWORD]
    arrays = read_root_inputs(settings.data, [parameter.name for parameter in parameters])
    tensors = {name: torch.from_numpy(array[: settings.examples]) for name, array in arrays.items()}
    size, count = settings.batch_size, len(next(iter(tensors.values())))
    return [
        {name: tensor[start : start + size] for name, tensor in tensors.items()}
        for start in range(0, count, size)
    ]


@contextmanager
def _activations(folder: Path | None) -> Iterator[Keep]:
    if folder is None:
        yield list
    else:
        with disk_cache(folder) as cache:
            yield cache.keep


@contextmanager
def _keeping_blocks(work: _Work, journal: Journal) -> Iterator[None]:
    """After a failure the folder stays if a block is in it; an interrupt says so."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if journal.done:
            count = f"{len(journal.done)} of {len(work.blocks)} blocks"
            interrupt.add_note(f"{count} are kept in {work.folder}, and the same command goes on from there")
        raise
    finally:
        if not journal.done:
            shutil.rmtree(work.folder)


def _quantize_blocks(work: _Work, journal: Journal, batches: Batches, progress: Progress) -> None:
    found = _route(work, batches) if batches else None
    ours: Sequence[Sequence[Tensor]] | None = None  # what the block before put out, quantized
    floats: Sequence[Sequence[Tensor]] | None = None  # and in the float model
    count = len(work.blocks)
    for index in progress.track(
        range(count), lambda: f"Block {min(len(journal.done) + 1, count)} of {count}"
    ):
        streams = None if found is None else _Streams(work, found, index, ours, floats, batches)
        last = index == count - 1
        next_floats = None if streams is None or last else streams.advanced_float()
        if index >= len(journal.done):
            journal.add(work.shard(index).name, _quantize(work, index, streams))
        if streams is not None and not last:
            ours, floats = streams.advanced(), next_floats
        gc.collect()  # traced graphs refer to themselves: without it the weights of a few blocks pile up


def _route(work: _Work, batches: Batches) -> Route:
    first = work.source.materialised(work.blocks[0])
    with work.source.resident(outside(work.source.module, work.blocks)):
        return route(work.source.module, work.blocks, first, batches, keep=work.keep)


@final
class _Streams:
    """What one block reads and puts out, in the quantized and in the float model."""

    def __init__(
        self,
        work: _Work,
        found: Route,
        index: int,
        ours: Sequence[Sequence[Tensor]] | None,
        floats: Sequence[Sequence[Tensor]] | None,
        batches: Batches,
    ) -> None:
        self._work, self._route, self._index = work, found, index
        beside = [{name: batch[name] for name in MASKS if name in batch} for batch in batches]
        call = found.calls[index]
        self.inputs = BlockInputs(call, found, ours, beside)
        self.float_inputs = None if floats is None else BlockInputs(call, found, floats, beside)

    def module(self, block: nn.Module) -> nn.Module:
        """The block as a module of what it reads."""
        return block_module(block, self._route.calls[self._index], self._route)

    def advanced_float(self) -> Sequence[Sequence[Tensor]] | None:
        """Outputs of the float block, where the technique looks at them."""
        if not isinstance(self._work.technique, QuantizesParts):
            return None
        block = self.module(self._work.source.materialised(self._work.blocks[self._index]))
        return self._work.keep(outputs_of(block, self.float_inputs or self.inputs))

    def advanced(self) -> Sequence[Sequence[Tensor]]:
        """Outputs of the block as it is stored."""
        path = self._work.blocks[self._index]
        skeleton = self._work.source.module.get_submodule(path)
        block = block_from_shard(skeleton, path, self._work.shard(self._index))
        return self._work.keep(outputs_of(self.module(block), self.inputs))


def _quantize(work: _Work, index: int, streams: _Streams | None) -> Written:
    """Quantize a block and write its shard."""
    path = work.blocks[index]
    block = work.source.materialised(path)
    names = [name for name, module in block.named_modules() if _taken(module)]
    if not names:
        raise UnsupportedError(f"block {path!r} has no layer that can be quantized (linear, convolution)")
    stored = set(block.state_dict())
    if streams is None:
        module = nn.Module()
        module.add_module(PART, block)
        model = Model(path, module, {})
    else:
        model = block_model(path, streams.module(block), streams.inputs)
    layers = tuple(f"{PART}.{name}" for name in names)
    decision = Decision(work.technique.name, layers, Stage.QUANTIZE, work.settings.technique_settings)
    del block
    _apply(work, model, decision, streams)
    return _write(work, index, model, stored)


def _taken(module: nn.Module) -> bool:
    return type(module) in LAYERS and not isinstance(module, nn.Embedding) and obstacle(module) is None


def _apply(work: _Work, model: Model, decision: Decision, streams: _Streams | None) -> None:
    try:
        if streams is None:
            work.technique.apply(model, decision, ())
        elif isinstance(work.technique, QuantizesParts):
            work.technique.apply_to_part(
                model, decision, streams.inputs, float_batches=streams.float_inputs, keep=work.keep
            )
        else:
            work.technique.apply(model, decision, streams.inputs)
    except ValueError as error:
        raise InputError(f"{decision.technique}: {error}") from error


def _write(work: _Work, index: int, model: Model, names: set[str]) -> Written:
    """The block's shard: encoded weights by their fields, all else as it came, if the technique left it."""
    path, prefix = work.blocks[index], f"{PART}."
    layers = {name.removeprefix(prefix): layer for name, layer in encoded_layers(model.module)}
    tensors: dict[str, Tensor] = {}
    entries: dict[str, EncodedEntry] = {}
    for name, layer in layers.items():
        if (
            layer.input_quantizer is not None
            or layer.input_scale is not None
            or layer.input_factors is not None
        ):
            raise UnsupportedError(
                f"{work.technique.name} quantizes what layers read too, which is not streamed: use gptq or "
                "weight_only"
            )
        full = f"{path}.{name}"
        description, fields = taken_apart(layer.encoding())
        entries[full] = EncodedEntry(layer.technique, description)
        tensors |= {f"{full}.weight.{field}": tensor for field, tensor in fields.items()}
        names.discard(f"{name}.weight")
        if isinstance(layer.layer.bias, Tensor):
            _put_bias(work.source, tensors, f"{full}.bias", layer.layer.bias.detach())
            names.discard(f"{name}.bias")
    for name in sorted(names):
        stored = work.source.stored_name(f"{path}.{name}")
        if stored is not None:
            tensors[f"{path}.{name}"] = work.source.files.read(stored)
    return write_shard(work.shard(index), tensors, entries)


def _put_bias(source: Streamed, tensors: dict[str, Tensor], name: str, bias: Tensor) -> None:
    stored = source.stored_name(name)
    before = None if stored is None else source.files.read(stored)
    same = before is not None and torch.equal(before.float(), bias)
    tensors[name] = before if same and before is not None else bias


def _finish(work: _Work, journal: Journal) -> StreamedManifest:
    """Write what is outside of the blocks, the index and the manifest; the journal goes."""
    files = work.source.files
    inside = tuple(f"{block}." for block in work.blocks)
    rest = {name: files.read(name) for name in files.tensors if not name.startswith(inside)}
    entries = dict(journal.done) | {REST: write_shard(work.folder / REST, rest, {})}
    shards = tuple(work.shard(i).name for i in range(len(work.blocks)))
    write_text(work.folder / INDEX, index_text([work.folder / name for name in entries]))
    entries[INDEX] = written(work.folder / INDEX)
    defaults: Mapping[str, Scalar] = getattr(work.technique, "defaults", {})
    manifest = StreamedManifest(
        flyweight=flyweight.__version__,
        model=work.settings.model,
        blocks=work.blocks,
        shards=shards,
        technique=work.technique.name,
        settings={**defaults, **work.settings.technique_settings},
        files={name: {"bytes": entry.nbytes, "sha256": entry.sha256} for name, entry in entries.items()},
        versions=versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    manifest.write(work.folder)
    journal.remove()
    return manifest
