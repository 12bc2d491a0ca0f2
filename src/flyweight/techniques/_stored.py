"""What the techniques share that store weights in other forms than affine codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from flyweight.core.layer import CodebookProfile, Encoding, LayerProfile
from flyweight.core.plan import Scalar
from flyweight.tensors.encoded import EncodedLayer, EncodedWeight, Layer
from flyweight.tensors.grouping import check_group_size, columns_of_group

GRANULARITIES = ("channel", "group")


def stored(
    layer: LayerProfile,
    bits: int,
    encoding: Encoding,
    *,
    group_size: int | None = None,
    codebook: CodebookProfile | None = None,
) -> LayerProfile:
    """The layer stored in another form.

    Args:
        layer: Before.
        bits: Of everything that is stored of it.
        encoding: The form.
        group_size: Columns of a row that share a scale, 0 for all of them; None where there are no scales.
        codebook: Its lookup tables.
    """
    kept = layer.weights if layer.kept is None else max(layer.kept, 1)
    return replace(
        layer,
        weight_bits=bits / kept,
        encoding=encoding,
        code_bits=None,
        group_size=None if group_size is None else columns_of_group(layer.columns, group_size),
        codebook=codebook,
    )


def group_size_of(settings: Mapping[str, Scalar]) -> int:
    """Columns that share a scale by ``granularity`` and ``group_size``; 0 is a whole row.

    Raises:
        ValueError: A group has too few columns.
    """
    if settings["granularity"] == "channel":
        return 0
    size = cast("int", settings["group_size"])
    check_group_size(size)
    return size


def weight_of(root: nn.Module, name: str) -> tuple[Tensor, EncodedWeight | None]:
    """The float weight of the layer at ``name``, and what the stages before made of it."""
    module = root.get_submodule(name)
    if isinstance(module, EncodedLayer):
        return module.layer.weight.detach(), module.encoding() if module.encoders else None
    return cast("Layer", module).weight.detach(), None
