"""Columns of tables to examples: which are inputs, which the target, and whether inputs are texts or numbers.

Where the settings do not say: the target is the column with a usual name (``label``, ``category``,
``score``, ...), else the last; inputs are the columns with usual names of texts, else all others. Texts
of a table without header are called ``text``, ``text_b``, ``text_c``, ...
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flyweight.data.roles import NOTHING, Expected, Roles, Taken
from flyweight.data.tables import TARGET_NAMES, TEXT_NAMES, Table, not_numbers, numbers
from flyweight.data.targets import Labelled
from flyweight.data.text import TEXT_NAME
from flyweight.errors import InputError
from flyweight.settings import DataSettings


def choose_roles(
    table: Table, settings: DataSettings, *, labelled: bool = True, expected: Expected = NOTHING
) -> Roles:
    """What the settings, or else what is expected, or else the names, make of the columns.

    Args:
        table: The table.
        settings: Names or positions of the columns.
        labelled: Whether a target is expected; otherwise one is left out if it is known by its name, and
            there are no slices.
        expected: Its columns are taken where the table has all its inputs.

    Raises:
        InputError: A named column is missing, or no column is left for the inputs.
    """
    named = [name for name in table.columns if name]  # pandas writes row numbers under an empty name
    inputs = tuple(table.resolve(name) for name in settings.inputs) or _expected(table, expected)
    target, guessed = _target(table, settings.target or expected.target, inputs, labelled)
    slices = tuple(table.resolve(name) for name in settings.slices) if labelled else ()
    if not inputs:
        left = [name for name in named if name != target and name not in slices]
        inputs = tuple([name for name in left if name.casefold() in TEXT_NAMES] or left)
    if not inputs:
        raise InputError(f"{table.source} has no input column beside the target {target!r}")
    if target in inputs:
        raise InputError(f"{table.source}: column {target!r} is both an input and the target")
    return Roles(inputs, target, slices, guessed)


def _expected(table: Table, expected: Expected) -> tuple[str, ...]:
    """The expected inputs as the table calls them, if it has them all.

    Raises:
        InputError: They have names, and it is a table of numbers without header.
    """
    found = [name for name in expected.inputs if table.has(name)]
    if expected.kind == "numbers" and not table.headed and len(found) < len(expected.inputs):
        line = ",".join(expected.inputs)
        raise InputError(
            f"{table.source} has no header; put the line {line:.200} first, as the model needs it"
        )
    return tuple(table.resolve(name) for name in found) if found == list(expected.inputs) else ()


def _target(
    table: Table, asked: str | None, inputs: tuple[str, ...], labelled: bool
) -> tuple[str | None, str]:
    """The target and, if nobody asked for it, why it is that."""
    if asked is not None and (labelled or (asked in table.columns and asked not in inputs)):
        return table.resolve(asked), ""
    named = [name for name in table.columns if name]
    lowered = {name.casefold(): name for name in reversed(named)}
    usual = next((lowered[name] for name in TARGET_NAMES if name in lowered), None)
    if usual is not None and usual not in inputs:
        return usual, "for its name"
    return (named[-1], "as the last") if labelled and len(named) > 1 else (None, "")


def examples_of(
    tables: Mapping[str, Table],
    settings: DataSettings,
    *,
    labelled: bool = True,
    expected: Expected = NOTHING,
) -> dict[str, Labelled]:
    """The parts with their inputs and labels; a column is numeric if it is so in every part.

    Raises:
        InputError: A column is missing in a part, or inputs mix texts and numbers.
    """
    first = tables["train"] if "train" in tables else next(iter(tables.values()))
    roles = choose_roles(first, settings, labelled=labelled, expected=expected)
    for table in tables.values():
        for name in (*roles.inputs, *roles.slices, *([roles.target] if roles.target is not None else [])):
            if name not in table.columns:
                raise InputError(f"{table.source} has no column {name!r}, which {first.source} has")
    names = _of_kind(tables, roles.inputs, expected.kind, chosen=bool(settings.inputs))
    inputs = _inputs(tables, names, headed=first.headed, kind=expected.kind)
    labels = None if roles.target is None else _labels(tables, roles.target)
    return {
        part: Labelled(
            inputs[part], None if labels is None else labels[part], _slices(table, roles.slices), roles
        )
        for part, table in tables.items()
    }


def _of_kind(
    tables: Mapping[str, Table], names: tuple[str, ...], kind: Taken | None, *, chosen: bool
) -> tuple[str, ...]:
    """Those that a model of texts can take, unless they were chosen or none is a text; for others all."""
    if kind != "texts" or chosen:
        return names
    return tuple(name for name in names if not _is_numeric(tables, name)) or names


def _is_numeric(tables: Mapping[str, Table], name: str) -> bool:
    return all(numbers(table.columns[name]) is not None for table in tables.values())


def _inputs(
    tables: Mapping[str, Table], names: Sequence[str], *, headed: bool, kind: Taken | None
) -> dict[str, dict[str, np.ndarray | Sequence[Any]]]:
    parsed = {part: {name: numbers(table.columns[name]) for name in names} for part, table in tables.items()}
    texts = [name for name in names if any(columns[name] is None for columns in parsed.values())]
    if not texts and not (kind == "texts" and len(names) == 1):
        return {part: {n: c for n, c in columns.items() if c is not None} for part, columns in parsed.items()}
    if kind != "texts":
        _check_numbers(tables, names, texts, needed=kind == "numbers")
    shown = {name: name if headed else _text_name(index) for index, name in enumerate(names)}
    return {part: {shown[name]: _texts(table, name) for name in names} for part, table in tables.items()}


def _check_numbers(
    tables: Mapping[str, Table], names: Sequence[str], texts: Sequence[str], *, needed: bool
) -> None:
    """Raise InputError where texts are among numbers: the cell, where most of its column are numbers."""
    if len(texts) == len(names) and not needed:
        return
    for name in texts:
        for table in tables.values():
            odd = not_numbers(table.columns[name])
            if odd and (needed or 2 * len(odd) < len(table.columns[name])):
                raise InputError(
                    f"{table.source}: column {name!r} holds {table.columns[name][odd[0]]!r:.60} in row "
                    f"{odd[0] + 1}, where a number is needed; correct it, or choose the columns with "
                    "--input-column"
                )
    number = next(name for name in names if name not in texts)
    raise InputError(
        f"{next(iter(tables.values())).source}: column {texts[0]!r} holds text and {number!r} numbers; "
        "encode the text as numbers, or choose texts only, or numbers only, with --input-column"
    )


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
