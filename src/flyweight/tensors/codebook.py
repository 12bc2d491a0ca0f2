"""Weights as places in a table of values: one table for the whole weight, or one for each row.

Source: Han et al. 2015, arXiv:1510.00149, section 3 (k-means); Kim et al. 2023, arXiv:2306.07629, section 4.1
(a table a row, weights counted by how much they matter).
Differs: what matters is given by the caller; the source takes squared gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from flyweight.tensors.activation import straight_through
from flyweight.tensors.affine import as_matrix
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.kmeans import Start, centroids, nearest
from flyweight.tensors.stored import Stored

TableGranularity = Literal["tensor", "channel"]
TABLE_GRANULARITIES: tuple[str, ...] = get_args(TableGranularity)
ENTRY_BITS = 32
# Of the mean importance: weights that calibration says do not matter still get a value that is near.
LEAST_IMPORTANCE = 1e-4


@final
@dataclass(frozen=True, kw_only=True)
class CodebookForm:
    """How a weight is stored.

    Attributes:
        bits: 2..8, of a code.
        granularity: What shares a table: the whole ``tensor``, or an output ``channel`` (row).
    """

    bits: int = 4
    granularity: TableGranularity = "channel"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {self.bits}")

    def tables(self, rows: int) -> int:
        """Tables stored for a weight of so many rows."""
        return 1 if self.granularity == "tensor" else rows

    def entries(self, rows: int, columns: int) -> int:
        """Values in one table: never more than there are weights to share them."""
        return min(1 << self.bits, rows * columns // self.tables(rows))

    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        """Bits of codes, tables and, where only ``kept`` weights are not removed, a mask."""
        codes, mask = (rows * columns, 0) if kept is None else (kept, rows * columns)
        return codes * self.bits + self.tables(rows) * self.entries(rows, columns) * ENTRY_BITS + mask


@final
@dataclass(frozen=True, eq=False)
class CodebookWeight(Stored):
    """``w = table[codes]``.

    Attributes:
        codes: (rows, columns), places in the table.
        table: (1 or rows, entries), ascending.
        shape: Of the decoded weight; rows is its first axis.
        mask: (rows, columns), True where a weight is kept; None where all are.
    """

    codes: UInt8[Tensor, "rows columns"]
    table: Float[Tensor, "tables entries"]
    form: CodebookForm
    shape: tuple[int, ...]
    mask: Bool[Tensor, "rows columns"] | None = None

    def decode(self) -> Tensor:
        """The weight as float32, of ``shape``."""
        return looked_up(self.table, self).reshape(self.shape)


def looked_up(
    table: Float[Tensor, "tables entries"], stored: CodebookWeight
) -> Float[Tensor, "rows columns"]:
    """What the codes of a weight mean in a table; 0 where weights are removed."""
    found = table.expand(len(stored.codes), -1).gather(1, stored.codes.long())
    return found if stored.mask is None else found * stored.mask


def fit_table(
    weight: Tensor,
    form: CodebookForm,
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    importance: Float[Tensor, "_ columns"] | None = None,
    start: Start = "optimal",
) -> Float[Tensor, "tables entries"]:
    """The table that is closest to a weight.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        mask: Of the weight's shape; weights where it is False have no part in the table.
        importance: (1 or rows, columns), at least 0: what the squared error of each weight counts.
        start: As for `flyweight.tensors.kmeans.centroids`.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    matrix, flat_mask = as_matrix(weight, mask)
    shares = torch.ones_like(matrix) if importance is None else floored(importance).expand_as(matrix)
    if flat_mask is not None:
        shares = shares * flat_mask
    sets = form.tables(len(matrix))
    return centroids(matrix.reshape(sets, -1), shares.reshape(sets, -1), form.entries(*matrix.shape), start)


def floored(importance: Float[Tensor, "_ columns"]) -> Float[Tensor, "_ columns"]:
    """Importances over their mean, none of them 0; ones where all are 0."""
    mean = importance.double().mean()
    if not mean > 0:
        return torch.ones_like(importance)
    return (importance / mean).float().clamp_min(LEAST_IMPORTANCE)


def encode_codebook(
    weight: Tensor,
    form: CodebookForm,
    table: Float[Tensor, "tables entries"],
    mask: Bool[Tensor, " ..."] | None = None,
) -> CodebookWeight:
    """Each weight as the place of the closest value in its table.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        table: Ascending; from `fit_table`.
        mask: Of the weight's shape; weights where it is False become 0.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    matrix, flat_mask = as_matrix(weight, mask)
    codes = nearest(matrix.reshape(len(table), -1), table).to(torch.uint8)
    return CodebookWeight(codes.reshape(matrix.shape), table, form, tuple(weight.shape), flat_mask)


@final
class CodebookEncoder(nn.Module):
    """Encodes with a fixed table, keeping the mask of the stage before; the table may be learned.

    Source: Han et al. 2015, arXiv:1510.00149, section 3.3, for the gradient of a table.

    Args:
        form: What to store.
        table: From `fit_table`; None fits one anew to each weight.
    """

    table: Tensor | None

    def __init__(self, form: CodebookForm, table: Float[Tensor, "tables entries"] | None = None) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("table", table)

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> CodebookWeight:
        """The weight as it is stored."""
        mask = None if before is None else before.mask
        if self.table is None:
            return encode_codebook(weight, self.form, fit_table(weight, self.form, mask), mask)
        table = self.table.detach()
        if isinstance(self.table, nn.Parameter):  # a step of training may have crossed two entries
            table = table.sort(1).values
        return encode_codebook(weight, self.form, table, mask)

    def learn_grid(self, weight: Tensor, before: EncodedWeight | None = None) -> tuple[nn.Parameter, ...]:
        """Make the table a parameter that starts where it is, or fits ``weight``, and return it."""
        start = self(weight, before).table
        del self.table
        self.table = nn.Parameter(start.clone())
        return (self.table,)

    def projected(
        self, weight: Float[Tensor, " *shape"], before: EncodedWeight | None = None
    ) -> Float[Tensor, " *shape"]:
        """The decoded weight, with gradients to the weight, and to the table where it is learned."""
        stored = self(weight, before)
        if not isinstance(self.table, nn.Parameter):
            return straight_through(weight, stored.decode().to(weight.dtype))
        decoded = looked_up(self.table.sort(1).values, stored).reshape(weight.shape)
        return decoded + (weight - weight.detach())
