"""Tables on disk: CSV, TSV (Python's csv module) and Parquet (pandas).

A first row is a header if a column asked for by name stands in it; if none of its cells is a number and a
column below it holds only numbers; or if it holds a usual name such as ``text`` or ``label`` that its
column does not repeat. It is none if one of its cells is a number, or if columns are asked for by
position. Otherwise the reader asks. Columns without a header are called by their position, "0", "1", ...

Limits: a CSV is held in memory as text while it is read; hundreds of megabytes belong in Parquet.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from flyweight._optional import require
from flyweight.errors import InputError

SUFFIXES = (".csv", ".tsv", ".parquet")
TEXT_NAMES = (
    *("text", "sentence", "sentence1", "sentence2", "text_a", "text_b", "question", "query", "utterance"),
    *("premise", "hypothesis", "review", "content"),
)
TARGET_NAMES = (
    "label",
    "labels",
    "target",
    "targets",
    "class",
    "category",
    "intent",
    "score",
    "similarity",
    "y",
)
_INT64_DIGITS = 20  # with the sign
MISSING = ("", "na", "n/a", "nan", "null", "none")  # casefolded cells that mean "no value" among numbers


@final
@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one file.

    Attributes:
        source: The file, for messages.
        columns: Name to its values: texts as read, or numbers where the format has types.
        headed: Whether the names come from the file; otherwise they are positions.
    """

    source: str
    columns: Mapping[str, np.ndarray | Sequence[Any]]
    headed: bool = True

    def has(self, name: str) -> bool:
        """Whether a column has that name, or that position."""
        return name in self.columns or (name.isdecimal() and int(name) < len(self.columns))

    def resolve(self, name: str) -> str:
        """The column called ``name``, or at that position.

        Raises:
            InputError: There is none.
        """
        if name in self.columns:
            return name
        if name.isdecimal() and int(name) < len(self.columns):
            return list(self.columns)[int(name)]
        raise InputError(f"{self.source} has no column {name!r}; its columns are {', '.join(self.columns)}")


def read_table(path: Path, requested: Sequence[str] = (), known: Sequence[str] = ()) -> Table:
    """The table in a CSV, TSV or Parquet file.

    Args:
        path: The file.
        requested: Columns the user named, by name or position; they help to tell whether there is a header.
        known: Likewise, columns of the table that a model was made with; this one may lack them.

    Raises:
        InputError: The file is empty, damaged, not UTF-8 or ragged, has another separator, or its header is
            in doubt.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    rows = _read_rows(path)
    _check_separator(rows, path, (*requested, *known))
    if not has_header(rows, requested, str(path), known):
        names = [str(position) for position in range(len(rows[0]))]
        return Table(str(path), dict(zip(names, zip(*rows, strict=True), strict=True)), headed=False)
    names = [cell.strip() for cell in rows[0]]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns called {twice!r}; rename one")
    if len(rows) == 1:
        raise InputError(f"{path} holds a header and no rows")
    return Table(str(path), dict(zip(names, zip(*rows[1:], strict=True), strict=True)))


def _read_rows(path: Path) -> list[list[str]]:
    """All rows but blank ones, equally long."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            rows: list[list[str]] = []
            for row in reader:
                if not row:
                    continue
                if rows and len(row) != len(rows[0]):
                    raise InputError(
                        f"{path}, line {reader.line_num} has {len(row)} cells, the first row {len(rows[0])}"
                        + ("; is ; its separator? write , instead" if ";" in rows[0][0] else "")
                    )
                rows.append(row)
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if not rows:
        raise InputError(f"{path} is empty")
    return rows


def _check_separator(rows: Sequence[Sequence[str]], path: Path, named: Sequence[str]) -> None:
    """Raise InputError where the only column is several, separated by semicolons."""
    split = [row[0].split(";") for row in rows]
    if len(rows[0]) > 1 or len(split[0]) == 1 or len({len(cells) for cells in split}) > 1:
        return
    if {*TEXT_NAMES, *TARGET_NAMES, *named} & {cell.strip().casefold() for cell in split[0]} or any(
        numbers(column) is not None for column in zip(*split[1:], strict=True)
    ):
        raise InputError(f"{path} has one column, and ; in every row: is ; its separator? write , instead")


def has_header(
    rows: Sequence[Sequence[str]], requested: Sequence[str], source: str, known: Sequence[str] = ()
) -> bool:
    """Whether the first row names the columns; the rule is in the module's docstring.

    Raises:
        InputError: It cannot be told, or a requested name is not in the first row.
    """
    first = [cell.strip() for cell in rows[0]]
    names = [name for name in requested if not name.isdecimal()]
    missing = next((name for name in names if name not in first), None)
    if missing is not None:
        raise InputError(f"{source} has no column {missing!r}; its first row is {', '.join(first)!r:.200}")
    expected = [name for name in known if not name.isdecimal()]
    if names or (expected and set(expected) <= set(first)):
        return True
    if any(is_number(cell) for cell in first):
        return False
    usual = {*TEXT_NAMES, *TARGET_NAMES}
    if len(rows) == 1 and all(cell.casefold() in usual for cell in first):
        return True
    columns = list(zip(*rows[1:], strict=True))
    if any(numbers(column) is not None for column in columns):
        return True
    if any(
        cell.casefold() in usual and cell not in column for cell, column in zip(first, columns, strict=False)
    ):
        return True
    if requested or (known and not expected):
        return False
    if expected:
        raise InputError(
            f"{source}: its first row ({', '.join(first)!r:.120}) does not hold the column {expected[0]!r} "
            "that the model was made with; add that header, or name the columns, as --input-column 0 where "
            "there is none"
        )
    raise InputError(
        f"{source}: it is unclear whether the first row ({', '.join(first)!r:.120}) is a header; name "
        "columns with --input-column: by name if it is, by position (0, 1, ...) if not"
    )


def is_number(cell: str) -> bool:
    """Whether a cell is a number; ``nan`` and ``inf`` are, ``1_000`` is not."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def numbers(values: np.ndarray | Sequence[Any]) -> np.ndarray | None:
    """A column as int64, or as float32 with NaN for missing values; None if it holds something else.

    Integers stay int64, because float32 is exact only up to 2^24, too little for ids.
    """
    if isinstance(values, np.ndarray):
        return _narrowed(values) if values.dtype.kind in "biuf" else None
    if not values:
        return None
    parsed = [_number(value) for value in values]
    if any(value is None for value in parsed):
        return None
    array = np.array(parsed, dtype=np.float64)
    if np.isnan(array).all():
        return None
    if all(isinstance(value, int) for value in parsed) and max(map(abs, parsed)) < 2**63:  # type: ignore[arg-type]  # no None is left
        return np.array(parsed, dtype=np.int64)
    return _narrowed(array)


def not_numbers(values: np.ndarray | Sequence[Any]) -> list[int]:
    """Positions of the values of a column that are neither numbers nor missing."""
    return [index for index, value in enumerate(values) if _number(value) is None]


def _number(value: object) -> int | float | None:
    """One cell: a number, NaN for a missing one, None for anything else."""
    if value is None:
        return float("nan")
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str):
        return None
    cell = value.strip()
    if len(cell) <= _INT64_DIGITS and cell.lstrip("+-").isdecimal() and is_number(cell):
        return int(cell)
    if is_number(cell):
        return float(cell)
    return float("nan") if cell.casefold() in MISSING else None


def _narrowed(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)


def _read_parquet(path: Path) -> Table:
    pandas = require("pandas", extra="tables", purpose="reading Parquet")
    arrow = require("pyarrow", extra="tables", purpose="reading Parquet")
    try:
        frame = pandas.read_parquet(path)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return Table(str(path), {str(name): _typed(frame[name]) for name in frame.columns})


def _typed(series: Any) -> np.ndarray | list[Any]:
    """Numbers as an array, with NaN where one is missing; everything else as a list, with None."""
    if series.dtype.kind in "biuf":
        missing = series.isna()
        if missing.any():
            return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
        return np.asarray(
            series.to_numpy(dtype=series.to_numpy().dtype if series.dtype.kind != "b" else bool)
        )
    return [None if missing else value for value, missing in zip(series.tolist(), series.isna(), strict=True)]
