"""Options of ``flyweight stream``, and the settings they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from flyweight import catalog
from flyweight.cli_options import check_name
from flyweight.cli_values import pairs
from flyweight.units import parse_bytes

if TYPE_CHECKING:
    from flyweight.export.streamed_manifest import StreamedManifest
    from flyweight.streaming import StreamSettings


@final
@dataclass(frozen=True, kw_only=True)
class Streamed:
    """What to stream, and where to."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="file.py:factory or package.module:name; makes the module.")
    ]
    weights: Annotated[
        Path,
        typer.Option(help="A .safetensors file, an index of shards (….index.json), or a folder of either."),
    ]
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")]
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration: .npz with arrays called as the model's inputs, .npy, or file.py:loader."
        ),
    ] = None
    model_arguments: Annotated[
        list[str] | None,
        typer.Option("--model-arg", metavar="NAME=VALUE", help="Argument of the factory; repeatable."),
    ] = None
    stack: Annotated[
        str | None,
        typer.Option(help="Path of the list of blocks, as model.layers; by default that with most weights."),
    ] = None
    technique: Annotated[str, typer.Option(help="One that quantizes weights.")] = "gptq"
    bits: Annotated[int | None, typer.Option(help="Of one weight.")] = None
    group_size: Annotated[int | None, typer.Option(help="Neighbouring weights that share a scale.")] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the technique; repeatable."),
    ] = None
    examples: Annotated[
        int | None, typer.Option(min=1, help="Calibration examples used; all if left out.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Examples computed together.")] = 4
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Keep activations in files here, gone afterwards; in memory if left out.",
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="4GB", help="Fail rather than take more memory; mapped weights do not count. Linux."
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what is there, also a run begun with other settings."),
    ] = False


def settings_of(options: Streamed) -> StreamSettings:
    """The settings that were given.

    Raises:
        BadParameter: A value is out of range, or the technique is unknown.
    """
    from flyweight.streaming import StreamSettings

    check_name("technique", options.technique)
    given: dict[str, Any] = dict(pairs(options.set, "--set"))
    if options.bits is not None:
        given["bits"] = options.bits
    if options.group_size is not None:
        given |= {"group_size": options.group_size}
        if "granularity" in catalog.get("technique", options.technique).defaults:
            given = {"granularity": "group"} | given
    try:
        return StreamSettings(
            model=options.model,
            weights=options.weights,
            out=options.out,
            data=options.data,
            technique=options.technique,
            technique_settings=given,
            model_arguments=pairs(options.model_arguments, "--model-arg"),  # type: ignore[arg-type]
            stack=options.stack,
            examples=options.examples,
            batch_size=options.batch_size,
            cache_dir=options.cache_dir,
            max_memory_bytes=None if options.max_memory is None else parse_bytes(options.max_memory),
            overwrite=options.overwrite,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def summary(manifest: StreamedManifest, out: Path) -> str:
    """One line of what was written."""
    nbytes = sum(entry["bytes"] for entry in manifest.files.values())
    return f"{len(manifest.blocks)} blocks, {nbytes} bytes written to {out}"
