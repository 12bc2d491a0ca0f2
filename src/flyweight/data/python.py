"""Data made by the user's own function, ``file.py:loader`` or ``package.module:loader``.

The function takes no argument and returns one of: `Splits`; `Examples`; ``(inputs, targets)``; a dict of
such pairs with keys ``train``, ``calibration``, ``evaluation`` (or ``test``, ``val``); or, unlabelled,
``inputs`` alone. Inputs are an array, a list of texts or of image paths (`pathlib.Path`), or a dict of
these by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.data.column_steps import MATRIX_NAME
from flyweight.data.examples import Examples, Splits
from flyweight.data.splits import is_part, select_parts
from flyweight.data.targets import Labelled, encode
from flyweight.errors import InputError
from flyweight.user_code import user_object


def read_python(spec: str, *, class_targets: bool | None = True) -> dict[str, Examples]:
    """What the function returns, by part.

    Args:
        spec: ``file.py:loader`` or ``package.module:loader``.
        class_targets: As in `flyweight.data.targets.encode`, for targets that are not in `Examples` already.

    Raises:
        InputError: There is no such function, it raises, or it returns something else.
    """
    returned = _called(spec)
    if isinstance(returned, Splits):
        return {
            "train": returned.train,
            "calibration": returned.calibration,
            "evaluation": returned.evaluation,
        }
    if (
        isinstance(returned, Mapping)
        and returned
        and all(isinstance(k, str) and is_part(k) for k in returned)
    ):
        parts = select_parts(returned)
    else:
        parts = {"train": returned}
    if all(isinstance(part, Examples) for part in parts.values()):
        return parts
    return encode({use: _labelled(part, f"{spec} ({use})") for use, part in parts.items()}, class_targets)


def _called(spec: str) -> object:
    with user_object(spec) as function:
        if not callable(function):
            raise InputError(f"{spec} is no function; name one that returns the data")
        returned: object = function()
    return returned


def _labelled(part: object, where: str) -> Labelled:
    if isinstance(part, Examples):
        return Labelled(part.inputs, part.targets, part.columns)
    inputs, targets = part if isinstance(part, tuple) and len(part) == 2 else (part, None)
    return Labelled(
        _inputs(inputs, where), None if targets is None else _array(targets, f"the targets of {where}")
    )


def _inputs(inputs: object, where: str) -> dict[str, np.ndarray | Sequence[Any]]:
    if isinstance(inputs, Mapping) and inputs and all(isinstance(name, str) for name in inputs):
        return {name: _column(values, f"input {name!r} of {where}") for name, values in inputs.items()}
    return {MATRIX_NAME: _column(inputs, f"the inputs of {where}")}


def _column(values: object, what: str) -> np.ndarray | Sequence[Any]:
    if isinstance(values, list | tuple) and values and isinstance(values[0], str | Path | np.ndarray):
        return list(values)
    return _array(values, what)


def _array(values: object, what: str) -> np.ndarray:
    """``values`` (an array, a tensor, a list of numbers or texts) as an array with examples on axis 0."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{what} cannot be made an array: {error}") from error
    if array.ndim == 0 or array.dtype.kind not in "biufU":
        raise InputError(
            f"{what} are a {type(values).__name__}; return Splits, Examples, (inputs, targets), "
            "or a dict of such pairs with keys train and test"
        )
    return array
