"""Labels in the model's order of classes, where both name their classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError


def in_model_order(splits: Splits, classes: Sequence[str]) -> Splits:
    """The same data with targets that index ``classes``, matched by name.

    Case matters only where names differ in nothing else. Labels that are numbers, and none of the names, are
    indices already, and take the names.

    Args:
        splits: Targets index the data's own class names, or those of the model.
        classes: The model's names by index; () leaves all as it is.

    Raises:
        InputError: A class of the data is none of the model's.
    """
    if not classes or not _are_classes(splits.evaluation.targets):
        return splits
    own = splits.evaluation.classes
    occurring = _occurring(splits)
    names = {index: own[index] if 0 <= index < len(own) else str(index) for index in occurring}
    strange = [name for name in names.values() if _place(name, classes) is None]
    numbered = all(name.isdecimal() for name in own)
    if strange and numbered:
        indices = {index: int(name) for index, name in names.items()}
        _check_range(indices.values(), len(classes))
        return _named(splits, indices, classes)
    if strange:
        raise InputError(
            f"class {strange[0]!r} of the data is none of the model's: {', '.join(classes[:5])}"
            f"{', ...' if len(classes) > 5 else ''}; name all the model's (--classes), or rename the labels"
        )
    return _named(splits, {index: _place(name, classes) for index, name in names.items()}, classes)


def check_count(classes: Sequence[str], outputs: int) -> None:
    """Raise InputError unless as many classes are named as the model has outputs, or none."""
    if classes and len(classes) != outputs:
        raise InputError(
            f"the model has {outputs} outputs, and classes names {len(classes)}; name one for each "
            "output, in their order"
        )


def _are_classes(targets: np.ndarray | None) -> bool:
    return targets is not None and targets.ndim == 1 and targets.dtype.kind in "iu"


def _occurring(splits: Splits) -> list[int]:
    parts = (splits.train.targets, splits.calibration.targets, splits.evaluation.targets)
    return sorted({int(index) for targets in parts if targets is not None for index in np.unique(targets)})


def _place(name: str, classes: Sequence[str]) -> int | None:
    """Where ``name`` is among ``classes``; one in another case will do."""
    if name in classes:
        return classes.index(name)
    folded = [other.casefold() for other in classes]
    return folded.index(name.casefold()) if name.casefold() in folded else None


def _check_range(labels: Iterable[int], count: int) -> None:
    outside = next((label for label in labels if not 0 <= label < count), None)
    if outside is not None:
        raise InputError(
            f"label {outside} of the data is out of range: {count} classes of the model are named, "
            f"0..{count - 1}"
        )


def _named(splits: Splits, order: Mapping[int, int | None], classes: Sequence[str]) -> Splits:
    def renamed(examples: Examples) -> Examples:
        targets = examples.targets
        if targets is not None:
            found, places = np.unique(targets, return_inverse=True)
            targets = np.array([order[int(index)] for index in found], dtype=np.int64)[places]
        return replace(examples, targets=targets, classes=tuple(classes))

    return Splits(renamed(splits.train), renamed(splits.calibration), renamed(splits.evaluation))
