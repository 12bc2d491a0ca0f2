"""Raw examples, before preprocessing, and their splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from flyweight.data.roles import Roles
from flyweight.errors import InputError

FILE_COLUMN = "file"  # of `Examples.columns`: where each example comes from, where each is a file


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """Examples in columns of equal length.

    Attributes:
        inputs: Column name to one raw value an example: an array with examples on axis 0, or a sequence of
            texts or of image paths.
        targets: (examples,) int64 class indices, or (examples, ...) float64; None for unlabelled data.
        classes: Class names by index; () where targets are not classes.
        columns: Further columns, for slices: name to (examples,) values.
        roles: Columns of the table they were read from; None where it was none.

    Raises:
        InputError: There is no input column, or the lengths differ.
    """

    inputs: Mapping[str, np.ndarray | Sequence[Any]]
    targets: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    roles: Roles | None = None

    def __post_init__(self) -> None:
        lengths = {f"input {name!r}": len(values) for name, values in self.inputs.items()}
        lengths |= {f"column {name!r}": len(values) for name, values in self.columns.items()}
        if self.targets is not None:
            lengths["targets"] = len(self.targets)
        if not self.inputs:
            raise InputError("the data holds no input column")
        if len(set(lengths.values())) > 1:
            raise InputError(
                "the data's columns differ in length: "
                + ", ".join(f"{k} has {v}" for k, v in lengths.items())
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: np.ndarray) -> Examples:
        """The examples at ``indices``, (n,) int."""
        inputs = {
            name: v[indices] if isinstance(v, np.ndarray) else [v[i] for i in indices]
            for name, v in self.inputs.items()
        }
        targets = None if self.targets is None else self.targets[indices]
        columns = {name: v[indices] for name, v in self.columns.items()}
        return Examples(inputs, targets, self.classes, columns, self.roles)


@final
@dataclass(frozen=True, eq=False)
class Splits:
    """Data kept apart by purpose.

    Attributes:
        train: What the model may learn from, and the reference set of nearest-neighbour tasks.
        calibration: What activation ranges are measured on; drawn from ``train`` where the data has one.
        evaluation: What quality is measured on; never used for anything else.
    """

    train: Examples
    calibration: Examples
    evaluation: Examples
