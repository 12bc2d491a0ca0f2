"""Answers to files: named columns, one row an example, in the format the file's suffix says."""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flyweight._atomic import write_bytes
from flyweight.errors import InputError

Columns = Mapping[str, Sequence[object]]

# A class named after a folder whose name is not UTF-8 is written as Python and JSON escape it.
_UNWRITABLE = "backslashreplace"


def check_answers_path(path: str | Path) -> None:
    """Nothing, if `write_answers` knows the format and the folder is there: called before long work.

    Raises:
        InputError: It does not, or it is not.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise InputError(
            f"answers cannot be written to {path}: name a file that ends in {', '.join(_WRITERS)}"
        )
    if not path.parent.is_dir():
        raise InputError(f"answers cannot be written to {path}: there is no folder {path.parent}")


def write_answers(path: str | Path, columns: Columns) -> None:
    """Write a file whole or not at all.

    ``.csv`` has a header and holds lists as JSON; ``.json`` is an array of objects and ``.jsonl`` one object
    a line, both with NaN and infinity as null; ``.npz`` holds one array a column.

    Raises:
        InputError: The suffix is another, the file cannot be written, or a column does not fit the format.
        ValueError: There is no column, or they differ in length.
    """
    check_answers_path(path)
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"answers need columns of one length, got {sorted(lengths)}")
    write_bytes(Path(path), _WRITERS[Path(path).suffix.lower()](columns))


def _csv(columns: Columns) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row.values()] for row in _rows(columns))
    return text.getvalue().encode(errors=_UNWRITABLE)


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _json(columns: Columns) -> bytes:
    rows = [json.dumps(_finite(row), ensure_ascii=False) for row in _rows(columns)]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode(errors=_UNWRITABLE)


def json_lines(columns: Columns) -> str:
    """One JSON object a line and example, with NaN and infinity as null."""
    lines = "".join(json.dumps(_finite(row), ensure_ascii=False) + "\n" for row in _rows(columns))
    return lines.encode(errors=_UNWRITABLE).decode()


def _jsonl(columns: Columns) -> bytes:
    return json_lines(columns).encode()


def _npz(columns: Columns) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, values in columns.items():
            # Not numpy.savez, which takes column names as its own arguments.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, _array(name, values), allow_pickle=False)
    return buffer.getvalue()


def _array(name: str, values: Sequence[object]) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(
            f"column {name!r} holds rows of different shapes: write .jsonl instead of .npz"
        ) from error
    if array.dtype.kind == "O":
        raise InputError(f"column {name!r} holds values of different kinds: write .jsonl instead of .npz")
    return array


def _rows(columns: Columns) -> Iterator[dict[str, object]]:
    for values in zip(*columns.values(), strict=True):
        yield {name: _plain(value) for name, value in zip(columns, values, strict=True)}


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _finite(value: object) -> object:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return {key: _finite(item) for key, item in value.items()} if isinstance(value, dict) else value


_WRITERS: dict[str, Callable[[Columns], bytes]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".npz": _npz,
}
