"""How each layer is written: which of its forms the file holds, and so which kernel computes with it.

The same answer is given for a layer that is exported and for one that is only planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from flyweight.core.layer import LayerProfile, ModelProfile
from flyweight.export.onnx_blocks import Blocks, product_blocks, table_blocks, width_of
from flyweight.tensors.affine import SCALE_BITS

# float: as float32.
# codes: integers of 8 bits that kernels read as they are, next to DequantizeLinear.
# integers: narrow codes, or others, that become integers of 8 bits as the file is loaded.
# blocks: packed codes that MatMulNBits multiplies by.
# rows: packed codes whose rows GatherBlockQuantized looks up.
# decoded: narrow codes that become floats as the file is loaded.
Route = Literal["float", "codes", "integers", "blocks", "rows", "decoded"]
SIGN_BITS = 2  # of binary and ternary codes in a file
MOST_NARROW_BITS = 4
INTEGER_BITS = 8
PACKED: frozenset[Route] = frozenset({"blocks", "rows"})
STORED: frozenset[Route] = frozenset({"integers", "decoded"})


def code_bits(layer: LayerProfile) -> int | None:
    """Of affine codes, which those of binary and ternary weights are too; None where there are none."""
    return SIGN_BITS if layer.encoding in {"binary", "ternary"} else layer.code_bits


def table_entries(layer: LayerProfile) -> int:
    """Of one table; removed weights have an entry of their own where tables are free to have one."""
    if layer.codebook is None:
        return 0
    return layer.codebook.entries + (layer.encoding == "codebook" and layer.density < 1)


def code_width(layer: LayerProfile) -> int:
    """Bits that the file takes for one code of a layer."""
    bits = code_bits(layer)
    if bits is not None:
        return width_of(bits)
    if layer.codebook is not None:
        return width_of((table_entries(layer) - 1).bit_length())
    return 16 if layer.encoding in {"float16", "bfloat16"} else 8


def by_group(layer: LayerProfile) -> bool:
    """Whether a row has several scales."""
    return layer.group_size is not None and layer.group_size < layer.columns


def scale_count(layer: LayerProfile) -> int:
    """Scales of an affine weight."""
    return 1 if layer.group_size is None else layer.rows * -(-layer.columns // layer.group_size)


def has_zero_points(layer: LayerProfile) -> bool:
    """Whether more is stored than codes, scales and, of a layer with removed weights, their mask."""
    if layer.encoding in {"binary", "ternary"}:
        return False
    kept, scales = layer.weights * layer.density, scale_count(layer)
    mask = layer.weights if layer.density < 1 else 0
    rest = layer.weight_bits * kept - kept * (layer.code_bits or 0) - scales * SCALE_BITS - mask
    return rest > scales  # a zero point has at least two bits


def blocks_of(layer: LayerProfile) -> Blocks | None:
    """The packed layout in which a layer is multiplied by, or looked up; None where there is none."""
    bits = code_bits(layer)
    if bits is None:
        return None
    found = table_blocks if layer.op == "embedding" else product_blocks
    return found(layer.columns, layer.group_size, bits)


def routes(profile: ModelProfile) -> Mapping[str, Route]:
    """Layer name to how it is written."""
    return {layer.name: route(layer) for layer in profile.layers}


def route(layer: LayerProfile) -> Route:
    """How one layer is written; ``layer`` is as before lowering."""
    bits = code_bits(layer)
    if bits is None:
        masked_vectors = layer.encoding == "vector" and layer.density < 1
        if layer.encoding == "float32" or masked_vectors:
            return "float"
        return "decoded" if layer.activation_mode == "float" or layer.op == "embedding" else "integers"
    if width_of(bits) > INTEGER_BITS:
        return "decoded"
    as_codes = bits > MOST_NARROW_BITS and not by_group(layer)
    if layer.op == "embedding":
        return "codes" if as_codes else "rows" if blocks_of(layer) else "decoded"
    if layer.activation_mode != "float":
        return "codes" if as_codes else "integers"
    # Who asks for weights of 8 bits alone wants no more error than theirs, and rounding what is read adds as
    # much; with unrounded inputs, blocks of such codes are multiplied more slowly than floats.
    by_blocks = layer.op == "linear" and bits <= MOST_NARROW_BITS and blocks_of(layer) is not None
    return "codes" if as_codes else "blocks" if by_blocks else "decoded"
