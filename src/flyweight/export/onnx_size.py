"""The bytes of an ONNX file, before it is written."""

from __future__ import annotations

from dataclasses import replace

from flyweight.core.layer import FLOAT_BITS, LayerProfile, ModelProfile
from flyweight.export.onnx_container import container_bytes
from flyweight.export.onnx_routes import (
    PACKED,
    STORED,
    Route,
    blocks_of,
    by_group,
    code_bits,
    code_width,
    has_zero_points,
    routes,
    scale_count,
    table_entries,
)
from flyweight.tensors.affine import SCALE_BITS
from flyweight.tensors.codebook import ENTRY_BITS

HALF_SCALE_BITS = 16


def lowered(profile: ModelProfile) -> ModelProfile:
    """The profile as the file stores it."""
    chosen = routes(profile)
    layers = tuple(
        _lowered(x if _shared(x, profile, chosen[x.name]) else replace(x, tied_to=None), chosen[x.name])
        for x in profile.layers
    )
    container = container_bytes(profile, chosen) + _shared_tables(profile)
    return replace(profile, layers=layers, container_bytes=float(container))


def _shared(layer: LayerProfile, profile: ModelProfile, route: Route) -> bool:
    owner = profile.by_name.get(layer.tied_to or "")
    same = ("encoding", "code_bits", "group_size", "weight_bits", "density", "codebook")
    if owner is None or any(getattr(layer, part) != getattr(owner, part) for part in same):
        return False
    return _family(route) == _family(routes(profile)[owner.name])


def _family(route: Route) -> str:
    return "packed" if route in PACKED else "stored" if route in STORED else route


def _lowered(layer: LayerProfile, route: Route) -> LayerProfile:
    width = FLOAT_BITS if route == "float" else code_width(layer)
    bits = layer.weights * FLOAT_BITS if route == "float" else _stored_bits(layer, route)
    return replace(
        layer,
        weight_bits=bits / layer.weights,
        density=1.0,
        code_bits=None if route == "float" else width,
    )


def _stored_bits(layer: LayerProfile, route: Route) -> int:
    """Of codes, scales, zero points and tables."""
    width, scales = code_width(layer), scale_count(layer)
    blocks = blocks_of(layer)
    if route in PACKED and blocks is not None:
        rows = layer.rows if layer.group_size else 1
        zero_points = has_zero_points(layer) * rows * blocks.zero_point_bytes * 8
        halved = layer.op == "embedding" and layer.encoding == "affine"
        scale_bits = HALF_SCALE_BITS if halved else SCALE_BITS
        return layer.rows * blocks.row_bytes * 8 + scales * scale_bits + zero_points
    if layer.encoding == "codebook" and layer.codebook is not None:
        return layer.weights * width + layer.codebook.tables * table_entries(layer) * ENTRY_BITS
    if layer.encoding == "vector" and layer.codebook is not None:
        size = layer.codebook.dimension
        return layer.rows * -(-layer.columns // size) * width + table_entries(layer) * size * ENTRY_BITS
    if code_bits(layer) is None and layer.group_size is None:
        return layer.weights * width
    filled = scales * (layer.group_size or layer.columns) if by_group(layer) else layer.weights
    halved = route == "codes" and layer.op == "embedding" and layer.group_size is not None
    zero_points = code_bits(layer) is not None and has_zero_points(layer)
    return filled * width + scales * ((HALF_SCALE_BITS if halved else SCALE_BITS) + zero_points * width)


def _shared_tables(profile: ModelProfile) -> int:
    """Bytes of the tables that the form itself defines, each stored once."""
    tables = [x.codebook for x in profile.layers if x.codebook is not None]
    entries = {table.entries for table in tables if not table.tables}
    return sum(entries) * ENTRY_BITS // 8
