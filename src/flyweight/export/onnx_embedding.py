"""Embeddings as they are exported."""

from __future__ import annotations

from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from flyweight.export import onnx_ops
from flyweight.export.onnx_packed import Packed
from flyweight.export.onnx_stored import CODES, Decoder
from flyweight.export.onnx_stored_forms import masked_codes
from flyweight.tensors.affine import AffineWeight, fits_half


@runtime_checkable
class Table(Protocol):
    """A weight whose rows are looked up."""

    def weight(self) -> Tensor:
        """(entries, width), for modules that read it themselves."""

    def __call__(self, ids: Tensor) -> Tensor:
        """Its rows."""


@final
class ExportEmbedding(nn.Module):
    """A table, called as an embedding is."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    @property
    def weight(self) -> Tensor:
        """(entries, width)."""
        return self.table.weight()

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


@final
class DecodedTable(nn.Module):
    """Floats that are decoded as the file is loaded."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def weight(self) -> Tensor:
        """(entries, width)."""
        decoded: Tensor = self.decoder()
        return decoded

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight())


@final
class PackedTable(nn.Module):
    """Packed codes; the rows that are looked up are decoded."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    def weight(self) -> Tensor:
        """(entries, width)."""
        return self.packed.rows(torch.arange(len(self.packed.codes)))

    def forward(self, ids: Tensor) -> Tensor:
        return self.packed.rows(ids)


@final
class CodedTable(nn.Module):
    """Codes of 8 bits; the rows that are looked up are dequantized."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, weight: AffineWeight) -> None:
        super().__init__()
        by_row = weight.form.granularity != "tensor"
        self.narrow_types = dict[str, str]()
        self.register_buffer(CODES, masked_codes(weight))
        scale, zero = weight.scale.reshape(-1 if by_row else ()), weight.zero_point
        self.register_buffer("scale", scale.half() if by_row and fits_half(scale) else scale)
        self.register_buffer("zero_point", None if zero is None else zero.reshape(-1 if by_row else ()))

    def weight(self) -> Tensor:
        """(entries, width)."""
        scale = self.scale.float()
        table: Tensor = onnx_ops.dequantize(self.codes, scale, self.zero_point, 0, 0)
        return table

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = onnx_ops.embed(self.codes, self.scale, self.zero_point, ids)
        return rows
