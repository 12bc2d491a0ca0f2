"""What every stored weight of a form says of itself."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor


class StoredForm(Protocol):
    """How weights are stored."""

    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        """Bits of all that is stored, with a mask where only ``kept`` weights are not removed."""


class Stored:
    """A weight in a form: size and density, which follow from form, shape and mask.

    Attributes:
        form: How it is stored.
        shape: Of the decoded weight; rows is its first axis.
        mask: (rows, columns), True where a weight is kept; None where all are.
    """

    form: StoredForm
    shape: tuple[int, ...]
    mask: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return 1.0 if self.mask is None else float(self.mask.float().mean())

    @property
    def nbytes(self) -> float:
        """Stored size."""
        kept = None if self.mask is None else int(self.mask.sum())
        return self.form.stored_bits(*self.size, kept=kept) / 8
