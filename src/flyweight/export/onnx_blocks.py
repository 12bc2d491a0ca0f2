"""How codes are laid out for products by blocks and for packed tables, and the bytes that takes.

ONNX Runtime's MatMulNBits and GatherBlockQuantized read rows of unsigned codes, lowest bits first, in blocks
of columns that share a scale. A row whose last block is short is stored as it is, and filled up when the file
is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

BLOCK_SIZES = (16, 32, 64, 128, 256)  # that MatMulNBits has
# Where a whole row has one scale the block is ours to choose: 128 columns took 0.6 to 0.9 of the time of 32.
ROW_BLOCKS = (128, 64, 32, 16)
LARGEST_FILLING = 0.1  # of a row's columns: what is filled up is multiplied too
WIDTHS = (2, 4, 8, 16)
PACKED_WIDTHS = (2, 4, 8)


def width_of(bits: int) -> int:
    """Bits that a file takes for a code of so many: integer types have 2, 4, 8 or 16."""
    return next(width for width in WIDTHS if bits <= width)


@final
@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The layout of one weight.

    Attributes:
        columns: Of a row.
        width: 2, 4 or 8 bits of a stored code.
        block_size: Columns of a block.
        by_row: One scale serves all blocks of a row, or of the whole weight.
    """

    columns: int
    width: int
    block_size: int
    by_row: bool

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // self.block_size)

    @property
    def row_bytes(self) -> int:
        """Of the codes of a row, as they are stored."""
        return packed_bytes(self.columns, self.width)

    @property
    def filled(self) -> bool:
        """Whether the last block of a row is short."""
        return self.columns % self.block_size != 0

    @property
    def zero_point_bytes(self) -> int:
        """Of a row."""
        return 1 if self.by_row else packed_bytes(self.count, self.width)


def packed_bytes(count: int, width: int) -> int:
    """Whole bytes that hold so many codes."""
    return -(-count * width // 8)


def product_blocks(columns: int, group_size: int | None, bits: int) -> Blocks | None:
    """The layout in which MatMulNBits multiplies; None where it cannot.

    Args:
        columns: Of the weight.
        group_size: Columns that share a scale; None where all do.
        bits: Of a code.
    """
    width = width_of(bits)
    if width not in PACKED_WIDTHS:
        return None
    by_row = group_size is None or group_size >= columns
    size = _row_block(columns) if by_row else group_size
    if size not in BLOCK_SIZES:
        return None
    return Blocks(columns=columns, width=width, block_size=size, by_row=by_row)


def table_blocks(columns: int, group_size: int | None, bits: int) -> Blocks | None:
    """The layout in which GatherBlockQuantized looks rows up; None where it cannot."""
    width = width_of(bits)
    if width not in PACKED_WIDTHS or columns * width % 8 != 0:
        return None
    by_row = group_size is None or group_size >= columns
    size = max(BLOCK_SIZES[0], 1 << (columns - 1).bit_length()) if by_row else group_size
    if size is None or (not by_row and size not in BLOCK_SIZES):
        return None
    return Blocks(columns=columns, width=width, block_size=size, by_row=by_row)


def _row_block(columns: int) -> int:
    """The largest block with which little of a row is filling."""
    fits = (size for size in ROW_BLOCKS if -columns % size <= LARGEST_FILLING * columns)
    return next(fits, ROW_BLOCKS[-1])


def packed(codes: Int[Tensor, "rows columns"], width: int) -> UInt8[Tensor, "rows bytes"]:
    """Signed codes as unsigned ones, 2**(width - 1) higher, in bytes, lowest bits first; rows start anew."""
    in_a_byte = 8 // width
    unsigned = codes.to(torch.int16) + (1 << (width - 1))
    filled = torch.nn.functional.pad(unsigned, (0, -codes.shape[1] % in_a_byte))
    parts = filled.reshape(len(codes), -1, in_a_byte) << (torch.arange(in_a_byte) * width)
    return parts.sum(-1).to(torch.uint8)


def unpacked(stored: UInt8[Tensor, "*rows bytes"], width: int) -> Int[Tensor, "*rows codes"]:
    """The signed codes of `packed`, with those that fill up the last byte."""
    shifts = torch.arange(0, 8, width)
    codes = (stored[..., None].to(torch.int16) >> shifts) & ((1 << width) - 1)
    return codes.flatten(-2) - (1 << (width - 1))
