"""flyweight.yaml, and the same keys from the command line, to `Settings`.

The layout is flat: the fields of `Settings`, `DataSettings` and `TrainingSettings`, and the bounds of the
budget as ``max_size``, ``max_latency``, ``max_drop``, ``max_ram`` and ``max_energy``, with units as people
write them: all but ``max_drop`` need one. Paths are relative to the current folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from flyweight.core.cost import Budget
from flyweight.errors import InputError
from flyweight.recover.settings import TrainingSettings
from flyweight.settings import BUDGET_KEYS, DEFAULT_QUALITY_DROP, DataSettings, Settings
from flyweight.units import parse_bytes, parse_drop, parse_factor, parse_joules, parse_seconds

DEFAULT_FILE = "flyweight.yaml"
MAX_FILE_BYTES = 1_000_000

NEEDED: Mapping[str, str] = {
    "model": "file.py:factory, package.module:name, or a Hugging Face folder",
    "data": "a file or folder, or file.py:loader, with --data",
    "out": "the folder to write, with -o",
}


def read_settings_file(path: Path) -> dict[str, object]:
    """Checked values by key; what the file leaves out is left out.

    Raises:
        InputError: The file is missing, too large, not YAML, or holds an unknown key or a wrong value.
    """
    import yaml

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it is no settings file")
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"settings file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"settings file {path} is not UTF-8 text") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"settings file {path} is not YAML: {' '.join(str(error).split())}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InputError(f"settings file {path} holds a {type(raw).__name__}; write one 'key: value' a line")
    return _checked_file(path, raw)


def check_value(key: str, value: object) -> Any:
    """One value as `Settings` holds it.

    Raises:
        ValueError: The key is unknown, or the value is of a wrong type or out of range.
    """
    if key not in _PARSERS:
        raise ValueError(f"unknown key {key!r}; {nearest(key, _PARSERS)}")
    try:
        return _PARSERS[key](value)
    except TypeError as error:
        raise ValueError(str(error)) from error


def settings_from(values: Mapping[str, object]) -> Settings:
    """Settings of values by key as a file holds them, such as `Settings.to_dict` gives.

    Raises:
        InputError: A key is unknown, a value wrong, or the model, data or output folder is missing.

    A bound that is there but None is none; ``max_drop`` has a default where it is not there.
    """
    try:
        checked = {
            key: None if value is None else check_value(key, value)
            for key, value in values.items()
            if value is not None or key in BUDGET_KEYS
        }
    except ValueError as error:
        raise InputError(f"settings: {error}") from error
    return settings_of(checked)


def settings_of(checked: Mapping[str, Any]) -> Settings:
    """Settings of values by key that `check_value` gave.

    Raises:
        InputError: A value is out of range, or the model, data or output folder is missing.
    """
    for key, what in NEEDED.items():
        if key not in checked:
            raise InputError(f"no {key} is given: name {what}")
    bounds = {name: checked[key] for key, name in BUDGET_KEYS.items() if key in checked}
    own = {key: value for key, value in checked.items() if key not in BUDGET_KEYS}
    data = {f.name: own.pop(f.name) for f in fields(DataSettings) if f.name in own}
    training = {f.name: own.pop(f.name) for f in fields(TrainingSettings) if f.name in own}
    try:
        budget = Budget(**({"quality_drop": DEFAULT_QUALITY_DROP} | bounds))
        parts: dict[str, Any] = {
            "data_settings": DataSettings(**data),
            "training": TrainingSettings(**training),
        }
        return Settings(**own, budget=budget, **parts)
    except ValueError as error:
        raise InputError(f"settings: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'technique'?``, or the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _checked_file(path: Path, raw: Mapping[object, object]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in raw.items():
        if value is None:
            continue
        try:
            values[str(key)] = check_value(str(key), value)
        except ValueError as error:
            raise InputError(f"settings file {path}: {key}: {error}") from error
    return values


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"must be text, got {value!r:.60}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list | tuple):
        raise TypeError(f"must be a list of names, got {value!r:.60}")
    return tuple(_text(entry) for entry in entries)


def _classes(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) == 1:
        raise TypeError(f"must be a list of two names or more, got {value!r:.60}")
    for entry in value:
        if isinstance(entry, bool):
            raise TypeError(f"must be a list of names; YAML reads one of them as {entry}: put it in quotes")
    return tuple(str(entry) if type(entry) is int else _text(entry) for entry in value)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"must be a whole number, got {value!r:.60}")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"must be a number, got {value!r:.60}")
    return float(value)  # type: ignore[arg-type]  # it is one of the two


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false, got {value!r:.60}")
    return value


def _named(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"must hold 'name: value' pairs, got {value!r:.60}")
    return dict(value)


def _preprocessing(value: object) -> dict[str, Any]:
    named = _named(value)
    text = named.get("rescale")
    return named | {"rescale": parse_factor(text)} if isinstance(text, str) else named


def _scalars(value: object) -> dict[str, Any]:
    named = _named(value)
    for key, entry in named.items():
        if not isinstance(entry, bool | int | float | str):
            raise TypeError(f"{key} must be true, false, a number or text, got {entry!r:.60}")
    return named


def _quantity(parse: Callable[[str | int | float], float]) -> Callable[[object], float]:
    def parsed(value: object) -> float:
        if not isinstance(value, str | int | float):
            raise TypeError(f"must be a number or text, got {value!r:.60}")
        return parse(value)

    return parsed


_PARSERS: Mapping[str, Callable[[object], object]] = {
    "model": _text,
    "classes": _classes,
    "weights": _text,
    "model_arguments": _scalars,
    "data": _text,
    "inputs": _texts,
    "target": _text,
    "slices": _texts,
    "calibration_size": _whole,
    "evaluation_size": _whole,
    "evaluation_fraction": _number,
    "seed": _whole,
    "task": _text,
    "task_settings": _scalars,
    "preprocessing": _preprocessing,
    "techniques": _texts,
    "technique_settings": _scalars,
    "plan": _text,
    "max_size": _quantity(parse_bytes),
    "max_latency": _quantity(parse_seconds),
    "max_drop": _quantity(parse_drop),
    "max_ram": _quantity(parse_bytes),
    "max_energy": _quantity(parse_joules),
    "epochs": _whole,
    "train_seconds": _number,
    "tune": _text,
    "learning_rate": _number,
    "optimizer": _text,
    "train_batch_size": _whole,
    "warm_up": _number,
    "weight_decay": _number,
    "clip_norm": _number,
    "outputs": _text,
    "temperature": _number,
    "label_weight": _number,
    "augment": _scalars,
    "batch_norms": _text,
    "held_out": _number,
    "patience": _whole,
    "precision": _text,
    "resume": _flag,
    "format": _text,
    "runtime": _text,
    "threads": _whole,
    "batch_size": _whole,
    "seconds": _number,
    "out": _text,
    "overwrite": _flag,
}
