"""Labels in the model's order of classes, where both name their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError


def in_model_order(splits: Splits, classes: Sequence[str]) -> Splits:
    """The same data with targets that index ``classes``, matched by name; case is ignored.

    Labels that are numbers are indices already, and take the model's names.

    Args:
        splits: Targets index the data's own class names.
        classes: The model's names by index; () leaves all as it is.

    Raises:
        InputError: A class of the data is none of the model's.
    """
    own = splits.evaluation.classes
    if not classes or not own:
        return splits
    if all(name.isdecimal() for name in own):
        return _named(splits, np.array([int(name) for name in own]), classes)
    index = {name.casefold(): position for position, name in enumerate(classes)}
    strange = [name for name in own if name.casefold() not in index]
    if strange:
        raise InputError(
            f"class {strange[0]!r} of the data is none of the model's: {', '.join(classes[:5])}"
            f"{', ...' if len(classes) > 5 else ''}; rename the labels, or give the model's numbers"
        )
    return _named(splits, np.array([index[name.casefold()] for name in own]), classes)


def _named(splits: Splits, order: np.ndarray, classes: Sequence[str]) -> Splits:
    def renamed(examples: Examples) -> Examples:
        targets = None if examples.targets is None else order[examples.targets].astype(np.int64)
        return replace(examples, targets=targets, classes=tuple(classes))

    return Splits(renamed(splits.train), renamed(splits.calibration), renamed(splits.evaluation))
