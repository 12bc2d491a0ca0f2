"""A weight stored as it is: of layers of which something else is quantized than the weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from flyweight.tensors.encoded import EncodedLayer, EncodedWeight, attach


@final
@dataclass(frozen=True, eq=False)
class PlainWeight:
    """Floats, all of them kept."""

    weight: Tensor

    @property
    def nbytes(self) -> float:
        """Stored size."""
        return float(self.weight.nbytes)

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return 1.0

    @property
    def mask(self) -> None:
        """None, as all are kept."""
        return None

    def decode(self) -> Tensor:
        """The weight."""
        return self.weight


def as_it_is(weight: Tensor, before: EncodedWeight | None = None) -> EncodedWeight:
    """The encoder that changes nothing."""
    return PlainWeight(weight) if before is None else before


def attach_plain(root: nn.Module, name: str, technique: str) -> EncodedLayer:
    """The layer at ``name``, wrapped in place if it is not yet, its weight stored as it was before.

    Raises:
        UnsupportedError: The module cannot be encoded, see `flyweight.tensors.encoded.obstacle`.
    """
    layer = root.get_submodule(name)
    if not isinstance(layer, EncodedLayer):
        return attach(root, name, as_it_is, technique)
    layer.technique = "+".join(filter(None, (layer.technique, technique)))
    return layer
