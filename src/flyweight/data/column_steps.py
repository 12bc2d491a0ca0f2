"""Preprocessing steps that make one matrix of columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from flyweight.data.steps import MAX_SELECTED_COLUMNS, Columns, as_array, whole_numbers
from flyweight.errors import InputError

MATRIX_NAME = "x"  # what SelectColumns calls its matrix


@final
@dataclass(frozen=True)
class SelectColumns:
    """One matrix from numeric columns; any others are left out.

    Attributes:
        columns: Those of the float32 matrix ``x``, (examples, columns), in the model's order; () makes none.
        integers: Columns handed to the model under their own names as int64 (examples,): ids of embeddings.
    """

    columns: tuple[str, ...]
    integers: tuple[str, ...] = ()
    kind: ClassVar[str] = "select_columns"

    def __post_init__(self) -> None:
        names = (*self.columns, *self.integers)
        if not names:
            raise ValueError("no column is selected")
        if len(names) > MAX_SELECTED_COLUMNS:
            raise ValueError(f"at most {MAX_SELECTED_COLUMNS} columns can be selected, got {len(names)}")
        if len(set(names)) != len(names):
            raise ValueError("a column is selected twice")

    def __call__(self, columns: Columns) -> Columns:
        """``x`` and the integer columns."""
        selected: dict[str, np.ndarray] = {}
        if self.columns:
            selected[MATRIX_NAME] = np.stack(
                [self._column(columns, name) for name in self.columns], axis=1
            ).astype(np.float32)
        return selected | {name: whole_numbers(name, self._column(columns, name)) for name in self.integers}

    @staticmethod
    def _column(columns: Columns, name: str) -> np.ndarray:
        if name not in columns:
            raise InputError(
                f"the model needs a column {name!r}; the data's columns are {', '.join(columns)}"
            )
        values = as_array(name, columns[name])
        if values.ndim != 1:
            raise InputError(f"column {name!r} must hold one number an example, got shape {values.shape}")
        return values


@final
@dataclass(frozen=True)
class JoinColumns:
    """A table as the matrix that the model was made with; such a matrix passes as it is.

    Attributes:
        name: Of the matrix.
        count: Its columns, which a table has to hold in the same order; their names do not matter.
    """

    name: str
    count: int
    kind: ClassVar[str] = "join_columns"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("the name of the matrix is empty")
        if not 1 <= self.count <= MAX_SELECTED_COLUMNS:
            raise ValueError(f"count must be in 1..{MAX_SELECTED_COLUMNS}, got {self.count}")

    def __call__(self, columns: Columns) -> Columns:
        """``name`` alone, (examples, count), where every column holds one number an example."""
        arrays = {name: values for name, values in columns.items() if _is_column(values)}
        if len(arrays) != len(columns):
            return columns
        if len(arrays) != self.count:
            raise InputError(
                f"the model takes {self.count} features, the data have {len(arrays)} columns of numbers "
                f"({', '.join(arrays):.80}); choose them with --input-column"
            )
        return {self.name: np.stack([np.asarray(values) for values in arrays.values()], axis=1)}


def _is_column(values: np.ndarray | Sequence[Any]) -> bool:
    """Whether it holds one number an example."""
    return isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "biuf"
