"""Packed codes, as MatMulNBits and GatherBlockQuantized read them."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from flyweight.export.onnx_block_ops import EXACT_LEVEL, block_product, block_rows
from flyweight.export.onnx_blocks import Blocks, packed
from flyweight.export.onnx_stored import CODES, ZERO_POINT
from flyweight.export.onnx_stored_forms import masked_codes
from flyweight.tensors.affine import AffineWeight, fits_half


@final
class Packed(nn.Module):
    """A weight in blocks.

    Args:
        weight: What is stored.
        blocks: Its layout.
        flat: (rows, bytes), which an embedding and a product of the same weight read both; else products read
            (rows, blocks, bytes of a block) where no block is short.
        half_scales: Scales are stored in float16 where that holds them.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(
        self, weight: AffineWeight, blocks: Blocks, *, flat: bool, half_scales: bool = False
    ) -> None:
        super().__init__()
        self.blocks, self.narrow_types = blocks, dict[str, str]()
        rows = len(weight.codes)
        codes = packed(masked_codes(weight), blocks.width)
        self.register_buffer(CODES, codes if flat or blocks.filled else codes.reshape(rows, blocks.count, -1))
        scale = weight.scale
        if blocks.by_row:
            scale = scale.reshape(() if scale.numel() == 1 else -1)
        self.register_buffer("scale", scale.half() if half_scales and fits_half(scale) else scale)
        zero = weight.zero_point
        if zero is not None and blocks.by_row:
            zero = zero.expand(-1, 8 // blocks.width)
        self.register_buffer(ZERO_POINT, None if zero is None else packed(zero, blocks.width))

    def product(self, x: Tensor, level: int) -> Tensor:
        """``x`` (..., columns) times the transpose of the weight."""
        blocks = self.blocks
        found: Tensor = block_product(
            x,
            self.codes,
            self.scale,
            self.zero_point,
            blocks.columns,
            blocks.width,
            blocks.block_size,
            level,
        )
        return found

    def rows(self, ids: Tensor) -> Tensor:
        """(..., columns)."""
        blocks = self.blocks
        found: Tensor = block_rows(
            self.codes, self.scale, self.zero_point, ids, blocks.columns, blocks.width, blocks.block_size
        )
        return found

    def decoded(self) -> Tensor:
        """(rows, columns), for modules that read the weight themselves."""
        return self.product(torch.eye(self.blocks.columns), EXACT_LEVEL).T
