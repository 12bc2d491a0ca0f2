"""Columns of tables to examples: which are inputs, which the target, and whether inputs are texts or numbers.

Where the settings do not say: the target is the column with a usual name (``label``, ``category``,
``score``, ...), else the last; inputs are the columns with usual names of texts, else all others. Texts
of a table without header are called ``text``, ``text_b``, ``text_c``, ...
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from flyweight.data.tables import TARGET_NAMES, TEXT_NAMES, Table, numbers
from flyweight.data.targets import Labelled
from flyweight.data.text import TEXT_NAME
from flyweight.errors import InputError
from flyweight.settings import DataSettings


@final
@dataclass(frozen=True)
class Roles:
    """What columns are for; names as in the table."""

    inputs: tuple[str, ...]
    target: str | None
    slices: tuple[str, ...] = ()


def choose_roles(table: Table, settings: DataSettings, *, labelled: bool = True) -> Roles:
    """What the settings, or else the names, make of the columns.

    Args:
        table: The table.
        settings: Names or positions of the columns.
        labelled: Whether a target is expected; otherwise one is left out if it is known by its name, and
            there are no slices.

    Raises:
        InputError: A named column is missing, or no column is left for the inputs.
    """
    named = [name for name in table.columns if name]  # pandas writes row numbers under an empty name
    target = _target(table, settings, named, labelled)
    slices = tuple(table.resolve(name) for name in settings.slices) if labelled else ()
    inputs = tuple(table.resolve(name) for name in settings.inputs)
    if not inputs:
        left = [name for name in named if name != target and name not in slices]
        inputs = tuple([name for name in left if name.casefold() in TEXT_NAMES] or left)
    if not inputs:
        raise InputError(f"{table.source} has no input column beside the target {target!r}")
    if target in inputs:
        raise InputError(f"{table.source}: column {target!r} is both an input and the target")
    return Roles(inputs, target, slices)


def _target(table: Table, settings: DataSettings, named: Sequence[str], labelled: bool) -> str | None:
    if settings.target is not None:
        if not labelled and settings.target not in table.columns:
            return None
        return table.resolve(settings.target)
    lowered = {name.casefold(): name for name in reversed(named)}
    usual = next((lowered[name] for name in TARGET_NAMES if name in lowered), None)
    if usual is not None and usual not in settings.inputs:
        return usual
    return named[-1] if labelled and len(named) > 1 else None


def examples_of(
    tables: Mapping[str, Table], settings: DataSettings, *, labelled: bool = True
) -> dict[str, Labelled]:
    """The parts with their inputs and labels; a column is numeric if it is so in every part.

    Raises:
        InputError: A column is missing in a part, or inputs mix texts and numbers.
    """
    first = tables["train"] if "train" in tables else next(iter(tables.values()))
    roles = choose_roles(first, settings, labelled=labelled)
    for table in tables.values():
        for name in (*roles.inputs, *roles.slices, *([roles.target] if roles.target is not None else [])):
            if name not in table.columns:
                raise InputError(f"{table.source} has no column {name!r}, which {first.source} has")
    inputs = _inputs(tables, roles.inputs, headed=first.headed)
    labels = None if roles.target is None else _labels(tables, roles.target)
    return {
        part: Labelled(inputs[part], None if labels is None else labels[part], _slices(table, roles.slices))
        for part, table in tables.items()
    }


def _inputs(
    tables: Mapping[str, Table], names: Sequence[str], *, headed: bool
) -> dict[str, dict[str, np.ndarray | Sequence[Any]]]:
    parsed = {part: {name: numbers(table.columns[name]) for name in names} for part, table in tables.items()}
    texts = [name for name in names if any(columns[name] is None for columns in parsed.values())]
    if not texts:
        return {part: {n: c for n, c in columns.items() if c is not None} for part, columns in parsed.items()}
    if len(texts) < len(names):
        number = next(name for name in names if name not in texts)
        raise InputError(
            f"{next(iter(tables.values())).source}: column {texts[0]!r} holds text and {number!r} numbers; "
            "encode the text as numbers, or choose the inputs: texts only, or numbers only"
        )
    shown = {name: name if headed else _text_name(index) for index, name in enumerate(names)}
    return {part: {shown[name]: _texts(table, name) for name in names} for part, table in tables.items()}


def _text_name(index: int) -> str:
    if index >= len(string.ascii_lowercase):
        raise InputError(
            f"a table without header has more than {len(string.ascii_lowercase)} text inputs; add a header"
        )
    return TEXT_NAME if index == 0 else f"{TEXT_NAME}_{string.ascii_lowercase[index]}"


def _texts(table: Table, name: str) -> list[str]:
    values = list(table.columns[name])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(
                f"{table.source}: column {name!r} holds no text in example {row} ({value!r:.60})"
            )
    return values


def _labels(tables: Mapping[str, Table], name: str) -> dict[str, np.ndarray]:
    parsed = {part: numbers(table.columns[name]) for part, table in tables.items()}
    known = {part: values for part, values in parsed.items() if values is not None}
    if len(known) == len(tables):
        return known
    return {part: _text_labels(table, name) for part, table in tables.items()}


def _text_labels(table: Table, name: str) -> np.ndarray:
    labels = [str(value).strip() if value is not None else "" for value in table.columns[name]]
    if "" in labels:
        raise InputError(f"{table.source}: column {name!r} holds no label in example {labels.index('')}")
    return np.array(labels, dtype=np.str_)


def _slices(table: Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    parsed = {name: numbers(table.columns[name]) for name in names}
    return {
        n: np.array([str(v) for v in table.columns[n]]) if values is None else values
        for n, values in parsed.items()
    }
