"""Values of flags that typer has no type for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import typer

from flyweight.units import parse_factor

_SIDE = re.compile(r"(\d+)(?:[x,](\d+))?")
_WORDS = {"True": True, "False": False}


def pairs(texts: Sequence[str] | None, flag: str) -> dict[str, object]:
    """``["n=9", "deep=true"]`` as ``{"n": 9, "deep": True}``: JSON where it is JSON, else text."""
    named: dict[str, object] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"write NAME=VALUE, got {text!r}", param_hint=flag)
        named[name] = _value(value)
    return named


def number_or_numbers(text: str, flag: str) -> float | list[float] | str:
    """``"0.5"``, ``"0.49,0.48,0.45"`` or ``"imagenet"``."""
    if text == "imagenet":
        return text
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"write a number, numbers such as 0.49,0.48,0.45, or imagenet; got {text!r}", param_hint=flag
        ) from error
    return numbers[0] if len(numbers) == 1 else numbers


def factor(text: str, flag: str) -> float:
    """``"0.5"`` or ``"1/255"``."""
    try:
        return parse_factor(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error


def side(text: str, flag: str) -> int | list[int]:
    """``"256"``, or ``"224x192"`` as [height, width]."""
    match = _SIDE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"write pixels, 256 or 224x224, got {text!r}", param_hint=flag)
    return int(match[1]) if match[2] is None else [int(match[1]), int(match[2])]


def _value(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return text if value is None else value
