"""What the file holds of a weight: narrow codes and floats that are decoded when the file is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from torch import Tensor, nn

from flyweight.export import onnx_stored_ops

CODES = "codes"  # buffers of this name are called weights in the file
ZERO_POINT = "zero_point"
NARROW_WIDTHS = (2, 4)  # that torch has no type for


@runtime_checkable
class StoresCodes(Protocol):
    """A module with a buffer of codes; what is computed from its buffers alone is not stored."""

    @property
    def narrow_types(self) -> Mapping[str, str]:
        """Names of buffers to the integer type that the file stores them in; others are as they are."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """What is stored of a weight.

    Attributes:
        codes: Of the weight's shape, or (rows, groups, columns of a group), the last group filled up: codes
            of ``width`` bits, or floats.
        width: Of a code; 32 for floats as they are.
        unsigned: Whether codes are places in ``table``.
        table: (entries, ...) what codes stand for, None where they are numbers.
        by_row: Whether each row has a table of its own, (rows, entries).
        scale: Broadcasts against the codes.
        zero_point: The same.
        columns: Of a row.
        shape: Of the decoded weight.
    """

    codes: Tensor
    width: int
    columns: int
    shape: tuple[int, ...]
    unsigned: bool = False
    table: Tensor | None = None
    by_row: bool = False
    scale: Tensor | None = None
    zero_point: Tensor | None = None


@final
class Decoder(nn.Module):
    """Called, gives the decoded weight."""

    codes: Tensor
    table: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.columns, self.shape, self.by_row = stored.columns, stored.shape, stored.by_row
        self.narrow_types = narrow_types(stored.width, unsigned=stored.unsigned)
        self.register_buffer(CODES, stored.codes)
        self.register_buffer("table", stored.table)
        self.register_buffer("scale", stored.scale)
        self.register_buffer(ZERO_POINT, stored.zero_point)

    def forward(self) -> Tensor:
        values = self.codes
        if self.table is not None:
            values = onnx_stored_ops.look_up(self.table, values, self.by_row)
        weight: Tensor = onnx_stored_ops.decode(
            values, self.scale, self.zero_point, self.columns, list(self.shape)
        )
        return weight


def narrow_types(width: int, *, unsigned: bool = False) -> Mapping[str, str]:
    """The ONNX type of codes and zero points of a width that torch has no type for."""
    if width not in NARROW_WIDTHS:
        return {}
    name = f"{'U' * unsigned}INT{width}"
    return {CODES: name, ZERO_POINT: name}
