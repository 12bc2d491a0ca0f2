"""Steps to JSON values and back. What is read is untrusted: every key, type and range is checked."""

from __future__ import annotations

import math
import types
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flyweight.data.column_steps import JoinColumns, SelectColumns
from flyweight.data.image_steps import CenterCrop, DecodeImage, Resize, ToChannelsFirst
from flyweight.data.steps import MAX_SELECTED_COLUMNS, Cast, Normalize, Rename, Rescale, Step
from flyweight.data.text_steps import Tokenize
from flyweight.data.tokenizer import TokenizerFile
from flyweight.errors import ArtifactError

STEPS: tuple[type[Step], ...] = (
    DecodeImage,
    Resize,
    CenterCrop,
    ToChannelsFirst,
    Rescale,
    Normalize,
    SelectColumns,
    JoinColumns,
    Tokenize,
    Cast,
    Rename,
)
MAX_TEXT = 1024  # characters of one name

_BY_KIND = {step.kind: step for step in STEPS}


def step_to_json(step: Step) -> dict[str, Any]:
    """The step's kind and fields; a tokenizer is named by its digest, its file is written apart."""
    return {"kind": step.kind} | {name: _to_json(getattr(step, name)) for name in _field_types(type(step))}


def step_from_json(raw: object, folder: Path) -> Step:
    """The step that `step_to_json` wrote, its files read from ``folder``.

    Raises:
        ArtifactError: Its kind or one of its fields is unknown, missing, of a wrong type or out of range.
    """
    if not isinstance(raw, dict):
        raise ArtifactError(f"a preprocessing step is a JSON object, got {type(raw).__name__}")
    kind = raw.get("kind")
    step = _BY_KIND.get(kind) if isinstance(kind, str) else None
    if step is None:
        raise ArtifactError(
            f"unknown preprocessing step {kind!r:.60}; this release knows {', '.join(_BY_KIND)}"
        )
    expected = _field_types(step)
    if set(raw) != {"kind", *expected}:
        odd = sorted(map(repr, set(raw) ^ {"kind", *expected}))
        raise ArtifactError(f"preprocessing step {kind!r} has an unknown or missing field {odd[0]:.60}")
    values = {name: _from_json(raw[name], hint, f"{kind}.{name}", folder) for name, hint in expected.items()}
    try:
        return step(**values)
    except ValueError as error:
        raise ArtifactError(f"preprocessing step {kind!r}: {error}") from error


def _field_types(step: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(step)
    return {field.name: hints[field.name] for field in fields(step)}


def _to_json(value: object) -> object:
    if isinstance(value, TokenizerFile):
        return {"sha256": value.sha256}
    return list(value) if isinstance(value, tuple) else value


def _from_json(value: object, hint: Any, where: str, folder: Path) -> object:
    """``value`` as a field of type ``hint``: a scalar, Literal, tuple, union of these, or a tokenizer."""
    if hint is TokenizerFile:
        return _tokenizer(value, folder)
    if get_origin(hint) in (Union, types.UnionType):
        member = next(
            (h for h in get_args(hint) if (get_origin(h) is tuple) == isinstance(value, list)), hint
        )
        return _from_json(value, member, where, folder) if member is not hint else _refuse(value, where)
    if get_origin(hint) is tuple:
        return _tuple(value, get_args(hint), where, folder)
    if get_origin(hint) is Literal:
        return value if isinstance(value, str) and value in get_args(hint) else _refuse(value, where)
    return _scalar(value, hint, where)


def _tuple(value: Any, members: tuple[Any, ...], where: str, folder: Path) -> tuple[object, ...]:
    if not isinstance(value, list) or len(value) > MAX_SELECTED_COLUMNS:
        _refuse(value, where)
    if members[-1] is not Ellipsis and len(value) != len(members):
        _refuse(value, where)
    return tuple(_from_json(entry, members[0], where, folder) for entry in value)


def _scalar(value: Any, hint: type[Any], where: str) -> object:
    if hint is float and type(value) in (int, float) and abs(value) < 1e38 and math.isfinite(value):
        return float(value)
    if hint is not float and type(value) is hint and not (isinstance(value, str) and len(value) > MAX_TEXT):
        return value
    return _refuse(value, where)


def _refuse(value: object, where: str) -> Any:
    raise ArtifactError(f"preprocessing {where} is malformed: {value!r:.60}")


def _tokenizer(value: Any, folder: Path) -> TokenizerFile:
    if not isinstance(value, dict) or set(value) != {"sha256"}:
        _refuse(value, "tokenize.tokenizer")
    definition = TokenizerFile.from_folder(folder)
    if definition.sha256 != value["sha256"]:
        raise ArtifactError(
            f"the tokenizer in {folder} is not the one the manifest names: its digest differs"
        )
    return definition
