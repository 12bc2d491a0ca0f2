"""Where factors can be moved between what linear layers read and their columns, and what they read there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from flyweight.channels.classes import FIXED
from flyweight.channels.rules import layer_of, scaled_layer
from flyweight.channels.trace import Channels, Side
from flyweight.errors import UnsupportedError
from flyweight.measure.curvature import as_rows, kept_tokens
from flyweight.tensors.encoded import input_of

if TYPE_CHECKING:
    from flyweight.model import Model


@final
@dataclass(frozen=True, eq=False)
class Site:
    """Linear layers whose inputs are scaled by the same factors.

    Attributes:
        reads: Layer to the channel that each of its columns reads, 0 to ``channels`` - 1.
        channels: How many have a factor of their own.
        folds: What takes the factors besides the columns, and the channel of each of its classes; None where
            nothing does, and the inputs must be multiplied.
        node: What the layers read, where it must be multiplied.
    """

    reads: Mapping[str, Int[Tensor, " columns"]]
    channels: int
    folds: tuple[Sequence[Side], Int[Tensor, " channels"]] | None
    node: fx.Node | None

    def over_columns(self, name: str, factors: Float[Tensor, " channels"]) -> Float[Tensor, " columns"]:
        """The factor of each column of a layer."""
        return factors[self.reads[name]]


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """What a site's layers read on calibration data.

    Attributes:
        largest: Magnitude of each channel.
        mean: Of the magnitudes.
        products: Layer to the sum of ``x x^T`` over all it read.
    """

    largest: Float[Tensor, " channels"]
    mean: Float[Tensor, " channels"]
    products: Mapping[str, Float[Tensor, "columns columns"]]


def sites(root: nn.Module, channels: Channels, *, multiply: bool) -> Iterator[Site]:
    """Every place, those whose factors fold first.

    Args:
        root: With the layers.
        channels: Of its graph.
        multiply: Also places where inputs must be multiplied.
    """
    columns = {side.name: side for side in channels.sides if side.kind == "columns"}
    linear = {
        name: side
        for name, side in columns.items()
        if isinstance(layer_of(root.get_submodule(name)), nn.Linear) and len(side.reads) == 1
    }
    folded: set[str] = set()
    for group in channels.groups():
        reading = [side for side in group if side.kind == "columns"]
        whole = all(side.name in linear and bool((side.classes != FIXED).all()) for side in reading)
        if reading and whole and len(reading) < len(group):
            yield _folding(group, reading)
            folded |= {side.name for side in reading}
    by_node: dict[fx.Node, list[Side]] = {}
    for name, side in linear.items():
        if name not in folded:
            by_node.setdefault(side.reads[0], []).append(side)
    for node, reading in by_node.items() if multiply else ():
        own = torch.arange(len(reading[0].classes))
        yield Site({side.name: own for side in reading}, len(own), None, node)


def _folding(group: Sequence[Side], reading: Iterable[Side]) -> Site:
    classes = torch.unique(torch.cat([side.classes for side in group]))
    classes = classes[classes != FIXED]
    reads = {side.name: torch.searchsorted(classes, side.classes) for side in reading}
    return Site(reads, len(classes), (group, classes), None)


@torch.no_grad()
def observe_inputs(
    model: Model, found: Sequence[Site], batches: Sequence[Mapping[str, Tensor]], *, products: bool
) -> list[Seen]:
    """What each site's layers read; of tokens, those that no ``attention_mask`` leaves out.

    Raises:
        UnsupportedError: A layer reads values that are not finite.
    """
    gathered = {name: _Gathered(products=products) for site in found for name in site.reads}
    keep: Tensor | None = None

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        layer = scaled_layer(model.module, name)

        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            gathered[name].add(as_rows(layer, input_of(args, kwargs), keep)[0])

        return model.module.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    handles = [record(name) for name in gathered]
    try:
        for batch in batches:
            keep = kept_tokens(batch)
            model.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, own in gathered.items():
        if not bool(torch.isfinite(own.largest).all()):
            raise UnsupportedError(
                f"layer {name!r} reads NaN or infinite values on calibration data: leave it out of the plan"
            )
    return [_seen(site, gathered) for site in found]


@final
class _Gathered:
    """Of one layer, over all batches."""

    def __init__(self, *, products: bool) -> None:
        self.largest = self.total = torch.zeros(())
        self.products = torch.zeros(()) if products else None
        self.count = 0

    def add(self, rows: Float[Tensor, "places columns"]) -> None:
        sizes = rows.abs()
        self.largest = torch.maximum(self.largest, sizes.amax(0)) if len(rows) else self.largest
        self.total = self.total + sizes.double().sum(0)
        self.count += len(rows)
        if self.products is not None:
            self.products = self.products + rows.T @ rows


def _seen(site: Site, gathered: Mapping[str, _Gathered]) -> Seen:
    largest, mean, readers = (torch.zeros(site.channels, dtype=torch.float64) for _ in range(3))
    for name, channel in site.reads.items():
        own = gathered[name]
        largest.scatter_reduce_(0, channel, own.largest.double().expand(len(channel)), "amax")
        mean.scatter_add_(0, channel, (own.total / max(own.count, 1)).expand(len(channel)))
        readers.scatter_add_(0, channel, torch.ones(len(channel), dtype=torch.float64))
    products = {name: own.products for name in site.reads if (own := gathered[name]).products is not None}
    return Seen(largest, mean / readers.clamp_min(1), products)
