"""Second moments of what a convolution reads, without unfolding it.

Unfolded, every input row is repeated for each row of the kernel. Of two rows of the kernel, however, it only
matters how far they are apart: the pairs of input rows that they meet are the same for all such two, but for
some at the edges. So each distance is summed once, and the edges are put right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A convolution over a padded image; every pair is (height, width).

    Attributes:
        size: Of the kernel.
        stride: Of its steps.
        dilation: Between what it reads.
        parts: Groups of channels.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    parts: int

    def places(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the output."""
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True)]
        return (height - spans[0] - 1) // self.stride[0] + 1, (width - spans[1] - 1) // self.stride[1] + 1

    def shares_rows(self, height: int) -> bool:
        """Whether kernel rows meet the same pairs of input rows, more of them than there are at the edges."""
        if self.size[0] == 1:
            return True
        return self.stride[0] == 1 and self.places(height, self.size[1])[0] >= self.size[0] * self.dilation[0]


@final
class KernelRows:
    """Sums over one padded batch, of kernels that `Kernel.shares_rows`.

    Args:
        kernel: Of the convolution.
        x: (batch, channels, height, width) float32.
    """

    def __init__(self, kernel: Kernel, x: Tensor) -> None:
        if kernel.size[0] == 1:  # rows between its steps are read by nothing
            x, kernel = x[:, :, :: kernel.stride[0]], replace(kernel, stride=(1, kernel.stride[1]))
        self._kernel, self._channels = kernel, x.shape[1] // kernel.parts
        self._height, width = kernel.places(*x.shape[2:])
        self._rows = self._shifted(x, width)
        self.count = len(x) * self._height * width

    def _shifted(self, x: Tensor, width: int) -> Tensor:
        """(parts, values, height, batch * width): what each column of the kernel reads."""
        kernel, (stride, dilation) = self._kernel, (self._kernel.stride[1], self._kernel.dilation[1])
        split = x.reshape(len(x), kernel.parts, self._channels, *x.shape[2:]).permute(1, 2, 3, 0, 4)
        found = x.new_empty(kernel.parts, kernel.size[1], *split.shape[1:4], width)
        for column in range(kernel.size[1]):
            first = column * dilation
            found[:, column] = split[..., first : first + (width - 1) * stride + 1 : stride]
        return found.flatten(4, 5).flatten(1, 2)

    def own(self) -> Float[Tensor, "parts columns columns"]:
        """Sum of ``x x^T``, with ``x`` in the order of the weight's columns; float64."""
        tall, step = self._kernel.size[0], self._kernel.dilation[0]
        values = self._rows.shape[1]
        found = torch.zeros(self._kernel.parts, tall, values, tall, values, dtype=torch.float64)
        for apart in range(tall):
            block = self._product(0, self._height, apart * step)
            for row in range(tall - apart):
                if row:
                    left, entered = (row - 1) * step, (row - 1) * step + self._height
                    block = block - self._product(left, left + step, apart * step)
                    block = block + self._product(entered, entered + step, apart * step)
                found[:, row, :, row + apart] = block
                found[:, row + apart, :, row] = block.transpose(1, 2)
        half = self._by_column(found.flatten(3)).mT  # the kernel's rows are left on one side
        return self._by_column(half.reshape(len(half), tall, values, -1)).mT

    def total(self) -> Float[Tensor, "parts columns"]:
        """Sum of ``x``; float64."""
        tall, step = self._kernel.size[0], self._kernel.dilation[0]
        rows = self._rows.sum(-1, dtype=torch.float64)
        sums = [rows[..., r * step : r * step + self._height].sum(-1) for r in range(tall)]
        return self._by_column(torch.stack(sums, 1)[..., None])[..., 0]

    def wanted(self, outputs: Float[Tensor, "parts rows places"]) -> Float[Tensor, "parts rows columns"]:
        """Sum of ``z x^T``, float64, with ``z`` from `output_rows`."""
        tall, step = self._kernel.size[0], self._kernel.dilation[0]
        found = [outputs @ self._span(r * step, r * step + self._height).mT for r in range(tall)]
        return self._by_column(torch.stack([x.double().mT for x in found], 1)).mT

    def _span(self, first: int, last: int) -> Tensor:
        return self._rows[:, :, first:last].flatten(2)

    def _product(self, first: int, last: int, apart: int) -> Tensor:
        """Of input rows with those ``apart`` below them."""
        return (self._span(first, last) @ self._span(first + apart, last + apart).mT).double()

    def _by_column(self, values: Tensor) -> Tensor:
        """(parts, columns, ...) in the order of the weight from (parts, kernel height, values, ...)."""
        wide = self._kernel.size[1]
        split = values.reshape(*values.shape[:2], wide, self._channels, *values.shape[3:])
        return split.movedim(3, 1).flatten(1, 3)


def output_rows(x: Tensor, parts: int) -> Float[Tensor, "parts rows places"]:
    """An output of a convolution, (batch, channels, height, width), as `KernelRows.wanted` takes it."""
    split = x.float().reshape(len(x), parts, -1, *x.shape[2:])
    return split.permute(1, 2, 3, 0, 4).flatten(2)
