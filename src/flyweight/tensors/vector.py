"""Vectors of neighbouring weights as places in one table of vectors (vector or product quantization).

Source: Gersho and Gray 1992, doi:10.1007/978-1-4615-3626-0, chapter 11 (k-means of vectors); Stock et al.
2019, arXiv:1907.05686, section 3 (weights as short vectors, weighted by what they are multiplied with).
Differs: importance counts each column by itself, the diagonal of the source's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Float64, Int16
from torch import Tensor, nn

from flyweight.tensors.activation import straight_through
from flyweight.tensors.affine import as_matrix
from flyweight.tensors.codebook import ENTRY_BITS, floored
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.grouping import group_count, grouped, ungrouped
from flyweight.tensors.stored import Stored
from flyweight.tensors.vector_kmeans import centroids, nearest

LEAST_BITS, MOST_BITS = 2, 12
LEAST_DIMENSION = 2


@final
@dataclass(frozen=True, kw_only=True)
class VectorForm:
    """How a weight is stored.

    Attributes:
        bits: 2..12, of a code.
        dimension: Neighbouring columns of a row that make one vector, at least 2; the last of a row may have
            fewer.
    """

    bits: int = 8
    dimension: int = 4

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.bits <= MOST_BITS:
            raise ValueError(f"bits must be in {LEAST_BITS}..{MOST_BITS}, got {self.bits}")
        if self.dimension < LEAST_DIMENSION:
            raise ValueError(f"dimension must be at least {LEAST_DIMENSION}, got {self.dimension}")

    def vectors(self, rows: int, columns: int) -> int:
        """Codes stored for a weight of that size."""
        return rows * group_count(columns, self.dimension)

    def entries(self, rows: int, columns: int) -> int:
        """Vectors in the table: never more than there are to share them."""
        return min(1 << self.bits, self.vectors(rows, columns))

    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        """Bits of codes, table and, where only ``kept`` weights are not removed, a mask.

        Removing weights saves nothing here: a vector has its code however many of its weights are kept.
        """
        table = self.entries(rows, columns) * self.dimension * ENTRY_BITS
        mask = 0 if kept is None else rows * columns
        return self.vectors(rows, columns) * self.bits + table + mask


@final
@dataclass(frozen=True, eq=False)
class VectorWeight(Stored):
    """``w[:, i * dimension : (i + 1) * dimension] = table[codes[:, i]]``.

    Attributes:
        codes: (rows, vectors of a row), places in the table.
        table: (entries, dimension).
        shape: Of the decoded weight; rows is its first axis.
        mask: (rows, columns), True where a weight is kept; None where all are.
    """

    codes: Int16[Tensor, "rows vectors"]
    table: Float[Tensor, "entries dimension"]
    form: VectorForm
    shape: tuple[int, ...]
    mask: Bool[Tensor, "rows columns"] | None = None

    def decode(self) -> Tensor:
        """The weight as float32, of ``shape``."""
        return looked_up(self.table, self).reshape(self.shape)


def looked_up(
    table: Float[Tensor, "entries dimension"], stored: VectorWeight
) -> Float[Tensor, "rows columns"]:
    """What the codes of a weight mean in a table; 0 where weights are removed."""
    found = ungrouped(table[stored.codes.long()], stored.size[1])
    return found if stored.mask is None else found * stored.mask


def fit_vectors(
    weight: Tensor,
    form: VectorForm,
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    importance: Float[Tensor, "_ columns"] | None = None,
    seed: int = 0,
) -> Float[Tensor, "entries dimension"]:
    """A table that is close to a weight.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        mask: Of the weight's shape; weights where it is False have no part in the table.
        importance: (1 or rows, columns), at least 0: what the squared error of each weight counts.
        seed: Of the draws that k-means starts from.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    vectors, shares, _ = _vectors(weight, form, mask, importance)
    entries = form.entries(len(weight), weight[0].numel())
    return centroids(vectors, shares, entries, seed)


def encode_vectors(
    weight: Tensor,
    form: VectorForm,
    table: Float[Tensor, "entries dimension"],
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    importance: Float[Tensor, "_ columns"] | None = None,
) -> VectorWeight:
    """Each vector as the place of the closest in a table.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        table: From `fit_vectors`.
        mask: Of the weight's shape; weights where it is False become 0, and have no part in what is closest.
        importance: As for `fit_vectors`.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    vectors, shares, flat_mask = _vectors(weight, form, mask, importance)
    codes, _ = nearest(vectors, shares, table.double())
    found = codes.reshape(len(weight), -1).to(torch.int16)
    return VectorWeight(found, table, form, tuple(weight.shape), flat_mask)


def _vectors(
    weight: Tensor, form: VectorForm, mask: Tensor | None, importance: Tensor | None
) -> tuple[Float64[Tensor, "count dimension"], Float64[Tensor, "count dimension"], Tensor | None]:
    """Vectors and what each of their numbers counts, 0 where there is no weight; and the flat mask."""
    matrix, flat_mask = as_matrix(weight, mask)
    shares = torch.ones_like(matrix) if importance is None else floored(importance).expand_as(matrix)
    if flat_mask is not None:
        shares = shares * flat_mask
    # Squared in float64, so that a vector is told from its neighbours to 1e-8 of its length.
    vectors, counts = (grouped(v, form.dimension).flatten(0, 1).double() for v in (matrix, shares))
    return vectors, counts, flat_mask


@final
class VectorEncoder(nn.Module):
    """Encodes with a fixed table, keeping the mask of the stage before; the table may be learned.

    Args:
        form: What to store.
        table: From `fit_vectors`.
        importance: With which it was fitted; None counts all alike.
    """

    table: Tensor
    importance: Tensor | None

    def __init__(
        self,
        form: VectorForm,
        table: Float[Tensor, "entries dimension"],
        importance: Float[Tensor, "_ columns"] | None = None,
    ) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("table", table)
        self.register_buffer("importance", importance)

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> VectorWeight:
        """The weight as it is stored."""
        mask = None if before is None else before.mask
        return encode_vectors(weight, self.form, self.table.detach(), mask, importance=self.importance)

    def learn_grid(self, weight: Tensor, before: EncodedWeight | None = None) -> tuple[nn.Parameter, ...]:
        """Make the table a parameter that starts where it is, and return it."""
        start = self.table
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
        decoded = looked_up(self.table, stored).reshape(weight.shape)
        return decoded + (weight - weight.detach())
