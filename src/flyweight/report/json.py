"""report.json: a `Report` as text and back, derived from the dataclass fields. See docs/formats.md."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin

from flyweight.core.json_text import parse_json
from flyweight.core.report import REPORT_VERSION, Report
from flyweight.errors import ArtifactError

MAX_REPORT_BYTES = 64_000_000

_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def to_json(report: Report) -> str:
    """Readable, diffable ASCII text; read back by `from_json`, with lists for tuples in ``settings``.

    Raises:
        TypeError: A value is of a type JSON lacks (a numpy integer, a path); the message holds its key path.
        ValueError: A value is not what its field declares, or not finite; the message holds its key path.
    """
    plain = _plain(report, "")
    _build(Report, plain, "")  # what could not be read back is not written
    return json.dumps({"version": REPORT_VERSION, **plain}, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """Read a report.

    Raises:
        ArtifactError: The text is too long, not JSON or of another version, or has a missing, unknown or
            repeated key, or a value not finite or of the wrong type; the message holds the key path.
    """
    try:
        raw = parse_json(text, "the report", max_bytes=MAX_REPORT_BYTES)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    try:
        return _build(Report, _current(raw), "")  # type: ignore[no-any-return]  # _build returns what it is told to
    except ValueError as error:
        raise ArtifactError(f"the report cannot be read: {error}") from error


def _current(raw: object) -> dict[str, Any]:
    """The report's own keys, once the version is known to be ours."""
    if not isinstance(raw, dict):
        raise ValueError(f"a report is a JSON object, got {_kind(raw)}")
    version = raw.get("version")
    if type(version) is not int or version != REPORT_VERSION:
        raise ValueError(f"version is {version!r}; this release reads {REPORT_VERSION}")
    return {key: value for key, value in raw.items() if key != "version"}


def _plain(value: object, where: str) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, the rest as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), _key(where, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; keys must be text")
        return {key: _plain(item, _key(where, key)) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{where} is of type {type(value).__name__}, which JSON cannot hold")


def _build(declared: Any, raw: Any, where: str) -> Any:
    """``raw`` as an instance of the declared type, or ValueError with the key path ``where``."""
    if is_dataclass(declared):
        return _build_dataclass(declared, raw, where)
    origin, arguments = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if raw is None else _build(inner, raw, where)
    if origin is tuple:
        return tuple(
            _build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_expect(list, raw, where))
        )
    if origin is Mapping:
        return {
            key: _build(arguments[1], item, _key(where, key))
            for key, item in _expect(dict, raw, where).items()
        }
    if declared is object:
        return _build_any(raw, where)
    return _build_scalar(declared, raw, where)


def _build_dataclass(declared: Any, raw: object, where: str) -> Any:
    types_of = typing.get_type_hints(declared)
    names = [field.name for field in fields(declared)]
    given = _expect(dict, raw, where or "the report")
    for name in names:
        if name not in given:
            raise ValueError(f"{_key(where, name)} is missing")
    for name in given:
        if name not in names:
            raise ValueError(f"{_key(where, name)} is not a key this release knows")
    return declared(**{name: _build(types_of[name], given[name], _key(where, name)) for name in names})


def _build_any(raw: object, where: str) -> object:
    if isinstance(raw, dict):
        return {key: _build_any(item, _key(where, key)) for key, item in raw.items()}
    if isinstance(raw, list):
        return [_build_any(item, f"{where}[{i}]") for i, item in enumerate(raw)]
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ValueError(f"{where} must be finite, got {raw}")
    return raw


def _build_scalar(declared: type, raw: object, where: str) -> object:
    if declared is not float:
        return _expect(declared, raw, where)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"{where} must be a number, got {_kind(raw)}")
    try:
        number = float(raw)
    except OverflowError:  # a whole number beyond the range of float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} must be finite, got {raw if isinstance(raw, float) else number}")
    return number


def _expect(declared: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, declared) or (declared is int and isinstance(raw, bool)):
        raise ValueError(f"{where} must be {_kind_of_type(declared)}, got {_kind(raw)}")
    return raw


def _key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _kind(raw: object) -> str:
    return "null" if raw is None else _kind_of_type(type(raw))


def _kind_of_type(kind: type) -> str:
    return _KINDS.get(kind, kind.__name__)
