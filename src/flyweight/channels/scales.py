"""Multiplying the channels that `trace` found by factors, in place, so that the model computes the same.

Weights that an earlier stage made sparse keep their masks: what is multiplied is what is left of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flyweight.channels.rules import Scaled, channel_axis, scaled_layer
from flyweight.channels.trace import Side
from flyweight.errors import UnsupportedError
from flyweight.measure.agreement import relative_error
from flyweight.measure.error import FOLDING
from flyweight.tensors.encoded import EncodedLayer

if TYPE_CHECKING:
    from flyweight.model import Model


@torch.no_grad()
def multiply(root: nn.Module, sides: Sequence[Side], factors: Float[Tensor, " classes"]) -> None:
    """Multiply what the sides write by the factors, and divide the columns that read it, in place.

    Args:
        root: With the layers and parameters.
        sides: All those of the classes that are multiplied.
        factors: Of each class.

    Raises:
        UnsupportedError: The mask of a layer would change with its weights.
    """
    for side in sides:
        own = factors[side.classes]
        if bool((own == 1).all()):
            continue
        if side.kind == "parameter":
            parameter = root.get_parameter(side.name)
            parameter.mul_(own.reshape(-1, *(1,) * (-(channel_axis(parameter) or -1) - 1)))
        elif side.kind == "rows":
            multiply_rows(root, side.name, own)
        else:
            multiply_columns(root, side.name, 1 / own)


def multiply_rows(root: nn.Module, name: str, factors: Float[Tensor, " rows"]) -> None:
    """What the layer writes, its bias included."""
    layer = scaled_layer(root, name)
    _set_weight(root, name, weight_of(root, name) * factors.reshape(-1, *(1,) * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.mul_(factors)


def multiply_columns(root: nn.Module, name: str, factors: Float[Tensor, " columns"]) -> None:
    """What the layer makes of each channel it reads."""
    weight = weight_of(root, name)
    by_group = grouped(scaled_layer(root, name), weight)
    scaled = by_group * factors.reshape(by_group.shape[0], 1, by_group.shape[2], 1)
    _set_weight(root, name, scaled.reshape(weight.shape))


def grouped(layer: Scaled, weight: Tensor) -> Float[Tensor, "groups rows columns kernel"]:
    """A layer's weight, rows and columns of one group of a convolution together."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def weight_of(root: nn.Module, name: str) -> Tensor:
    """The weight a layer multiplies by; what an earlier stage removed is 0."""
    module = root.get_submodule(name)
    if isinstance(module, EncodedLayer):
        return module.encoding().decode().to(module.layer.weight.dtype)
    return scaled_layer(root, name).weight.detach()


def mask_of(root: nn.Module, name: str) -> Tensor | None:
    """Of the weight's shape, True where an earlier stage kept it; None where all are kept."""
    module = root.get_submodule(name)
    mask = module.encoding().mask if isinstance(module, EncodedLayer) else None
    return None if mask is None else mask.reshape(scaled_layer(root, name).weight.shape)


def _set_weight(root: nn.Module, name: str, weight: Tensor) -> None:
    module = root.get_submodule(name)
    scaled_layer(root, name).weight.copy_(weight)
    if isinstance(module, EncodedLayer):
        kept = module.encoding().decode()
        if relative_error([weight], [kept.to(weight.dtype)]) > 0:
            raise UnsupportedError(
                f"layer {name!r} was encoded by an earlier decision, and its codes do not follow when its "
                "weight is scaled: leave it out of the plan"
            )


@contextmanager
def computes_the_same(model: Model, technique: str) -> Iterator[None]:
    """Raises UnsupportedError if the model computes something else after the block than before it."""
    wanted = model.outputs()
    yield
    off = relative_error(wanted, model.outputs())
    if not off <= FOLDING:
        raise UnsupportedError(
            f"{technique} changes what model {model.name!r} computes (relative error {off:.3g}): "
            "leave it out of the plan"
        )
