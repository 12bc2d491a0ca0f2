"""Operators, while a model is exported, that compute with packed codes; each with the ONNX nodes it becomes.

MatMulNBits at accuracy level 4 rounds what it reads to 8 bits, block by block; the operator here does the
same, so that it says what the file computes. Codes of 2 bits are multiplied as codes of 4, into which they
are turned when the file is loaded: no kernel for 2 bits was faster.
"""

# No `from __future__ import annotations`: see onnx_ops.
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flyweight.export.onnx_blocks import unpacked
from flyweight.export.onnx_contrib import gather_block_quantized, matmul_n_bits

EXACT_LEVEL = 0
INTEGER_LEVEL = 4
LARGEST_INTEGER = 127  # of the codes into which level 4 rounds
LEAST_WIDTH = 4  # that is multiplied
NARROW_OFFSET = (1 << (LEAST_WIDTH - 1)) - (1 << 1)  # from the middle of 2 bits to the middle of 4


@torch.library.custom_op("flyweight::block_product", mutates_args=())
def block_product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    columns: int,
    width: int,
    block_size: int,
    level: int,
) -> Tensor:
    """``x`` (..., columns) times the transpose of packed codes, (rows, ...), at an accuracy level.

    Args:
        x: What is multiplied.
        codes: (rows, bytes), or (rows, blocks, bytes of a block).
        scale: (rows, blocks), (rows,) where a row shares it, or a scalar.
        zero_point: (rows, bytes) as `flyweight.export.onnx_blocks.packed` packs them; one byte, in which the
            value is repeated, for a row or for all. None where there are none.
        columns: Of a row.
        width: Bits of a stored code.
        block_size: Columns of a block.
        level: `EXACT_LEVEL` or `INTEGER_LEVEL`.
    """
    weight = decoded(codes.flatten(1), scale, zero_point, columns, width, block_size)
    read = in_integers(x, block_size) if level == INTEGER_LEVEL else x
    return read @ weight.T


@torch.library.custom_op("flyweight::block_rows", mutates_args=())
def block_rows(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    ids: Tensor,
    columns: int,
    width: int,
    block_size: int,
) -> Tensor:
    """Rows of a packed table, (..., columns); the arguments are those of `block_product`."""
    return decoded(codes, scale, zero_point, columns, width, block_size)[ids]


def decoded(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, columns: int, width: int, block_size: int
) -> Tensor:
    """(rows, columns), the weight that packed codes stand for."""
    blocks = -(-columns // block_size)

    def spread(values: Tensor) -> Tensor:
        by_block = values if values.dim() == 2 else values.reshape(-1, 1)
        wide = by_block.expand(len(codes), -1)
        wide = wide.expand(-1, blocks) if wide.shape[1] == 1 else wide[:, :blocks]
        return wide.repeat_interleave(block_size, 1)[:, :columns]

    centred = unpacked(codes, width)[:, :columns].float()
    if zero_point is not None:
        zeros = unpacked(zero_point, width)
        repeated = zero_point.shape[1] == 1 and blocks * width > 8
        centred = centred - spread(zeros[:, :1] if repeated else zeros).float()
    return centred * spread(scale.float())


def in_integers(x: Tensor, block_size: int) -> Tensor:
    """``x`` as MatMulNBits reads it at level 4: symmetric codes of 8 bits, one scale for each block."""
    columns = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -columns % block_size))
    blocks = padded.reshape(*x.shape[:-1], -1, block_size)
    scale = blocks.abs().amax(-1, keepdim=True) / LARGEST_INTEGER
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    rounded: Tensor = ((blocks * inverse).round() * scale).flatten(-2)[..., :columns]
    return rounded


@block_product.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    columns: int,
    width: int,
    block_size: int,
    level: int,
) -> Tensor:
    return x.new_empty([*x.shape[:-1], codes.shape[0]])


@block_rows.register_fake
def _(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    ids: Tensor,
    columns: int,
    width: int,
    block_size: int,
) -> Tensor:
    return codes.new_empty([*ids.shape, columns], dtype=torch.float32)


def block_translations() -> Mapping[Any, Callable[..., Any]]:
    """Each operator above, and the function that writes its ONNX nodes."""
    from onnxscript import FLOAT, INT32
    from onnxscript import opset21 as op

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def onnx_block_product(x, codes, scale, zero_point, columns, width, block_size, level):  # type: ignore[no-untyped-def]
        rows, blocks = int(codes.shape[0]), -(-columns // block_size)
        multiplied = max(width, LEAST_WIDTH)
        stored = codes
        if len(codes.shape) == 2:  # the last block is short
            missing = blocks * block_size * width // 8 - int(codes.shape[1])
            stored = op.Pad(codes, ints(0, 0, 0, missing))
        if width < multiplied:
            stored = widened(stored)
        if width < multiplied or len(codes.shape) == 2:
            stored = op.Reshape(stored, ints(rows, blocks, block_size * multiplied // 8))
        zeros = None if zero_point is None else onnx_zero_points(zero_point, rows, blocks, width)
        return matmul_n_bits()(
            x,
            stored,
            onnx_scales(scale, rows, blocks),
            *([] if zeros is None else [zeros]),
            K=columns,
            N=rows,
            bits=multiplied,
            block_size=block_size,
            accuracy_level=level,
        )

    def widened(stored: Any) -> Any:
        """Bytes of four codes as pairs of bytes of two."""
        table = op.Constant(value=_pairs_of_narrow_codes())
        return op.Gather(table, op.Cast(stored, to=INT32.dtype))

    def onnx_zero_points(zero_point: Any, rows: int, blocks: int, width: int) -> Any:
        found, stored = zero_point, int(zero_point.shape[1])
        if width < LEAST_WIDTH:
            found = op.Reshape(widened(found), ints(int(zero_point.shape[0]), 2 * stored))
            stored *= 2
        wanted = -(-blocks * max(width, LEAST_WIDTH) // 8)
        one_for_all = int(zero_point.shape[0]) < rows or stored < wanted
        if stored > (1 if one_for_all else wanted):
            found = op.Slice(found, ints(0), ints(1 if one_for_all else wanted), ints(1))
        return op.Expand(found, ints(rows, wanted)) if one_for_all else found

    def onnx_scales(scale: Any, rows: int, blocks: int) -> Any:
        axes = len(scale.shape)
        found = op.Cast(scale, to=FLOAT.dtype) if scale.dtype != FLOAT.dtype else scale
        if axes == 2:
            return found
        column = op.Unsqueeze(found, ints(-1)) if axes else found
        return op.Expand(column, ints(rows, blocks)) if axes == 0 or blocks > 1 else column

    def onnx_block_rows(codes, scale, zero_point, ids, columns, width, block_size):  # type: ignore[no-untyped-def]
        rows, blocks = int(codes.shape[0]), -(-columns // block_size)
        zeros = zero_point
        if zero_point is not None and int(zero_point.shape[0]) < rows:
            zeros = op.Expand(zero_point, ints(rows, int(zero_point.shape[1])))
        # GatherBlockQuantized gives zeros for an index out of range, a Gather an error
        places = op.Range(*(op.Constant(value_int=value) for value in (0, rows, 1)))
        return gather_block_quantized()(
            codes,
            op.Gather(places, ids),
            onnx_scales(scale, rows, blocks),
            *([] if zeros is None else [zeros]),
            bits=width,
            block_size=block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    ops = torch.ops.flyweight
    return {
        ops.block_product.default: onnx_block_product,
        ops.block_rows.default: onnx_block_rows,
    }


def lists_places(node: Any) -> bool:
    """Whether a node of the file lists the rows of a packed table: runtimes do so as they load it."""
    users = [use.node for use in node.outputs[0].uses()]
    found = [after.node for user in users if user.op_type == "Gather" for after in user.outputs[0].uses()]
    return node.op_type == "Range" and any(user.op_type == "GatherBlockQuantized" for user in found)


def _pairs_of_narrow_codes() -> Any:
    """(256, 2) uint8: four codes of 2 bits in a byte, as two bytes of two codes of 4 bits."""
    from onnx import numpy_helper

    byte = np.arange(256)[:, None]
    codes = (byte >> np.arange(0, 8, 2) & 3) + NARROW_OFFSET
    return numpy_helper.from_array((codes[:, ::2] | codes[:, 1::2] << LEAST_WIDTH).astype(np.uint8))
