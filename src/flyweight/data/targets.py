"""Targets as a source holds them to class indices, or to real values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from flyweight.data.examples import Examples
from flyweight.data.roles import Roles, naming_target
from flyweight.errors import InputError

MAX_CLASSES = 1_000_000  # beyond it, integers are ids or values and no classes


@final
@dataclass(frozen=True, eq=False)
class Labelled:
    """Examples whose targets are as the source holds them.

    Attributes:
        inputs: As in `Examples`.
        labels: (examples, ...) integers, reals or texts; None for unlabelled data.
        columns: As in `Examples`.
        roles: As in `Examples`.
    """

    inputs: Mapping[str, np.ndarray | Sequence[Any]]
    labels: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    roles: Roles | None = None


def encode(
    parts: Mapping[str, Labelled], class_targets: bool | None, *, classes: Sequence[str] = ()
) -> dict[str, Examples]:
    """The parts with their targets encoded alike.

    Texts are classes: ``classes`` or, without them, the sorted texts of the ``train`` part (of all, where
    there is none). Integers are classes by their value, unless ``class_targets`` is False; reals are
    classes only if ``class_targets`` is True and all are whole.

    Args:
        parts: Name of the part (``"train"``) to its examples.
        class_targets: Whether targets are classes; None lets their type decide.
        classes: Names by index, where the source tells.

    Raises:
        InputError: A label is no class, or is one that training data do not have.
    """
    labels = {name: part.labels for name, part in parts.items() if part.labels is not None}
    with naming_target(next((part.roles for part in parts.values()), None)):
        encoded, names = _encoded(labels, class_targets, classes)
    return {
        name: Examples(part.inputs, encoded.get(name), names, part.columns, part.roles)
        for name, part in parts.items()
    }


def _encoded(
    labels: Mapping[str, np.ndarray], class_targets: bool | None, classes: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Targets by part, and the names of their classes."""
    if any(values.dtype.kind in "OUS" for values in labels.values()):
        names = tuple(classes) or _class_names(labels)
        return {name: _indices(values, names, name) for name, values in labels.items()}, names
    if labels and _are_classes(labels, class_targets):
        encoded = {name: _class_indices(values, name) for name, values in labels.items()}
        return encoded, tuple(classes) or _numbered(encoded)
    return {name: values.astype(np.float64) for name, values in labels.items()}, ()


def _class_names(labels: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    reference = [labels["train"]] if "train" in labels else list(labels.values())
    return tuple(sorted({str(label) for values in reference for label in values.ravel()}))


def _indices(labels: np.ndarray, names: tuple[str, ...], part: str) -> np.ndarray:
    if labels.ndim != 1:
        raise InputError(f"{part} labels have shape {labels.shape}; texts as labels must be one an example")
    index = {name: position for position, name in enumerate(names)}
    for row, label in enumerate(labels):
        if str(label) not in index:
            raise InputError(
                f"{part} label {str(label)!r:.60} (example {row}) is none of the {len(names)} known classes"
            )
    return np.array([index[str(label)] for label in labels], dtype=np.int64)


def _are_classes(labels: Mapping[str, np.ndarray], class_targets: bool | None) -> bool:
    if class_targets is None:
        return all(values.dtype.kind in "biu" and _one_each(values) for values in labels.values())
    return class_targets


def _one_each(values: np.ndarray) -> bool:
    return values.size == len(values)


def _class_indices(values: np.ndarray, part: str) -> np.ndarray:
    """(examples,) int64 of whole, non-negative numbers."""
    if not _one_each(values):
        raise InputError(f"{part} targets have shape {values.shape}; give one class index an example")
    flat = values.reshape(-1)
    if flat.dtype.kind == "f":
        odd = np.flatnonzero(~np.isfinite(flat) | (flat != np.rint(flat)))
        if odd.size:
            raise InputError(
                f"{part} target {flat[odd[0]]} (example {odd[0]}) is not a class; "
                "choose a task for real values, such as regression or similarity"
            )
    outside = np.flatnonzero((flat < 0) | (flat >= MAX_CLASSES))
    if outside.size:
        raise InputError(
            f"{part} target {flat[outside[0]]} (example {outside[0]}) is no class in 0..{MAX_CLASSES - 1}"
        )
    return flat.astype(np.int64)


def _numbered(encoded: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    largest = max((int(values.max()) for values in encoded.values() if values.size), default=-1)
    return tuple(str(index) for index in range(largest + 1))
