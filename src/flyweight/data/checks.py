"""What is checked of data before anything is run on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.data.roles import naming_target
from flyweight.errors import InputError

_CHUNK = 4096  # rows looked at in one go, so that the mask stays small


def check_splits(splits: Splits) -> None:
    """Check every split as `check_examples` does.

    Raises:
        InputError: Of the first problem found.
    """
    for name, examples in (
        ("train", splits.train),
        ("calibration", splits.calibration),
        ("evaluation", splits.evaluation),
    ):
        check_examples(examples, name)


def check_examples(examples: Examples, part: str) -> None:
    """Check that there are examples, and that inputs and targets are finite.

    Args:
        examples: To be checked.
        part: What to call them, ``"evaluation"``.

    Raises:
        InputError: There is no example, or a value is NaN or infinite; names column and example.
    """
    if not len(examples):
        raise InputError(f"the {part} data are empty")
    for name, values in examples.inputs.items():
        _check_finite(values, f"{part} input {name!r}")
    if examples.targets is not None:
        _check_finite(examples.targets, f"the {part} target")


def _check_finite(values: np.ndarray | Sequence[Any], what: str) -> None:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return
    for start in range(0, len(values), _CHUNK):
        finite = (
            np.isfinite(values[start : start + _CHUNK])
            .reshape(len(values[start : start + _CHUNK]), -1)
            .all(axis=1)
        )
        if not finite.all():
            raise InputError(
                f"{what} is missing or not finite in example {start + int(np.argmin(finite))}; fill it"
            )


def check_targets(examples: Examples, classes: int) -> None:
    """Check that targets are class indices that a model with ``classes`` outputs can give.

    Raises:
        InputError: There are no targets, they are no classes, or one is out of range.
    """
    with naming_target(examples.roles):
        _check_targets(examples.targets, classes)


def _check_targets(targets: np.ndarray | None, classes: int) -> None:
    if targets is None:
        raise InputError("the data hold no targets; name the target column, or use labelled data")
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise InputError(f"targets of shape {targets.shape} and type {targets.dtype} are no class indices")
    outside = np.flatnonzero((targets < 0) | (targets >= classes))
    if outside.size and classes == 1:
        raise InputError(
            f"label {targets[outside[0]]} (example {outside[0]}) is out of range: the model has 1 output: "
            "for a model that gives a value, use --task regression"
        )
    if outside.size:
        raise InputError(
            f"label {targets[outside[0]]} (example {outside[0]}) is out of range: "
            f"the model has {classes} outputs, so labels are 0..{classes - 1}"
        )
