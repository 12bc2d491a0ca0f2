"""Text on disk: JSON lines, and plain text with one example a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flyweight.data.tables import Table
from flyweight.errors import InputError

SUFFIXES = (".jsonl", ".txt")
NOTE_SUFFIXES = (".txt",)  # which are notes, and no data, beside data of another kind
TEXT_NAME = "text"


def read_lines(path: Path, name: str = TEXT_NAME, *, blank: bool = False) -> Table:
    """A table of one column, ``name``, with the lines of a text file, without blank ones unless ``blank``.

    A last line break ends the last line; no line follows it.

    Raises:
        InputError: The file is unreadable, empty or not UTF-8.
    """
    return Table(str(path), {name: [line for _, line in _lines(path, blank=blank)]})


def read_json_lines(path: Path) -> Table:
    """The table in a file with one JSON object a line; its columns are the keys of the first object.

    Raises:
        InputError: A line is not an object of texts, numbers and booleans, or lacks a key of the first.
    """
    rows = [_parsed(line, f"{path}, line {number}") for number, line in _lines(path)]
    names = list(rows[0])
    for row, (number, _) in zip(rows, _lines(path), strict=True):
        for name in names:
            if name not in row:
                raise InputError(f"{path}, line {number} has no {name!r}, which the first line has")
    return Table(str(path), {name: [row[name] for row in rows] for name in names})


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}; each line must be a JSON object")
    return row


def _lines(path: Path, *, blank: bool = False) -> list[tuple[int, str]]:
    """Line number, from 1, and text of every line; those that are blank only if ``blank``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    # Not splitlines: it also breaks at form feeds and Unicode separators, which occur inside texts.
    numbered = enumerate(text.removesuffix("\n").split("\n") if text else (), 1)
    lines = [(number, line.rstrip("\r")) for number, line in numbered if blank or line.strip()]
    if not lines:
        raise InputError(f"{path} is empty")
    return lines
