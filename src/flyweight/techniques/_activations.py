"""What techniques that change what layers read check of their settings and layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from flyweight.core.layer import LayerProfile
from flyweight.core.plan import Scalar
from flyweight.errors import UnsupportedError
from flyweight.tensors.activation import highest_code


def check_activation_bits(settings: Mapping[str, Scalar], key: str = "activation_bits") -> int:
    """A width of activations; raises ValueError unless it is in 2..8."""
    bits = cast("int", settings[key])
    try:
        highest_code(bits)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return bits


def check_reads_floats(layer: LayerProfile, technique: str) -> None:
    """Raise UnsupportedError for what reads no floats that could be rounded."""
    if layer.op == "embedding":
        raise UnsupportedError(f"layer {layer.name!r} is an embedding, which reads ids: leave it out")
    if layer.activation_mode != "float":
        raise UnsupportedError(
            f"layer {layer.name!r} reads {layer.activation_bits}-bit codes already "
            f"({layer.activation_mode}): leave {technique} out, or quantize its weight alone before"
        )


def check_multiplies_rows(layer: LayerProfile, *, instead: str) -> None:
    """Raise UnsupportedError for a convolution, whose ranges are not found at run time."""
    if layer.op in {"conv1d", "conv2d"}:
        raise UnsupportedError(
            f"layer {layer.name!r} is a {layer.op}: dynamic int8 convolutions are slower than float "
            f"on every CPU runtime measured; use {instead}"
        )
