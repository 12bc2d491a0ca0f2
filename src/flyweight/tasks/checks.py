"""What every task asks of targets and outputs before it scores them."""

from __future__ import annotations

import numpy as np

from flyweight.data.examples import Examples
from flyweight.data.roles import naming_target
from flyweight.errors import InputError


def labels(examples: Examples, task: str) -> np.ndarray:
    """(examples,) int64 class indices.

    Args:
        examples: Labelled examples.
        task: Name of the task, for the error.

    Raises:
        InputError: There are no examples or no targets, or a target is not one whole number.
    """
    with naming_target(examples.roles):
        return _labels(_targets(examples, task), task)


def _labels(targets: np.ndarray, task: str) -> np.ndarray:
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise InputError(
            f"{task} needs one class index an example; the targets are {targets.dtype} {targets.shape}"
        )
    return targets.astype(np.int64)


def numbers(examples: Examples, task: str) -> np.ndarray:
    """(examples, ...) float64 targets; classes whose names are numbers stand for those numbers.

    Raises:
        InputError: There are no examples or no targets, or a target is not a finite number.
    """
    with naming_target(examples.roles):
        return _numbers(_targets(examples, task), examples.classes, task)


def _numbers(targets: np.ndarray, classes: tuple[str, ...], task: str) -> np.ndarray:
    if classes:
        targets = _class_values(classes, task)[targets]
    if targets.dtype.kind not in "biuf":
        raise InputError(f"{task} needs numbers as targets, got {targets.dtype}")
    values = targets.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise InputError(f"{task} needs finite targets; the one of example {bad[0]} is {targets[bad[0]]}")
    return values


def one_row_each(outputs: np.ndarray, queries: int, task: str) -> None:
    """Check that the model answered each query.

    Raises:
        InputError: It gave fewer or more rows.
    """
    if outputs.ndim == 0 or len(outputs) != queries:
        raise InputError(
            f"{task} needs a row for each of {queries} queries; the model's first output is {outputs.shape}"
        )


def finite(values: np.ndarray, task: str) -> None:
    """Check that no entry of ``values``, (queries, ...), is NaN or infinite.

    Raises:
        InputError: One is; the message holds the first query concerned.
    """
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise InputError(
            f"{task} cannot score NaN or infinite outputs: {len(bad)} of {len(values)} are, the first at "
            f"query {bad[0]}; look for NaN in the model's weights and inputs"
        )


def _targets(examples: Examples, task: str) -> np.ndarray:
    if len(examples) == 0:
        raise InputError(f"{task} has no examples to score: the split is empty")
    if examples.targets is None:
        raise InputError(
            f"{task} needs targets, and the data hold none: name the target column with --target-column"
        )
    return examples.targets


def _class_values(classes: tuple[str, ...], task: str) -> np.ndarray:
    try:
        return np.array([float(name) for name in classes])
    except ValueError as error:
        raise InputError(
            f"{task} needs numbers as targets, and the data hold classes: {', '.join(classes[:5])}"
        ) from error
