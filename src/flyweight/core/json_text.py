"""JSON texts of ours, read strictly: no key twice, no NaN or infinity. They come from anywhere."""

from __future__ import annotations

import json
import math
from collections import Counter


def parse_json(text: str, what: str, *, max_bytes: int) -> object:
    """The value in a JSON text.

    Args:
        text: The text.
        what: Begins the messages, ``"plan"``.
        max_bytes: Longer texts are not read.

    Raises:
        ValueError: The text is too long, not JSON, or holds a key twice in one object, or a number that is
            not finite; a sentence that says where.
    """
    if len(text) > max_bytes:
        raise ValueError(f"{what} is larger than {max_bytes} bytes")
    try:
        value: object = json.loads(text, object_pairs_hook=_unique)
        _check_finite(value, "")
    except RecursionError as error:
        raise ValueError(f"{what} is not JSON that can be read: it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r:.80} is given twice in one object")
    return found


def _check_finite(value: object, where: str) -> None:
    """Python's reader takes NaN and Infinity, and makes infinity of 1e999."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where or 'the number'} must be finite, got {value}")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_finite(item, f"{where}[{index}]")
