"""Settings of a decision, completed from a technique's defaults and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flyweight.core.plan import Decision, Scalar


def complete(decision: Decision, defaults: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The decision's settings over the defaults; a group size alone is one for groups.

    Raises:
        ValueError: It has a setting the technique does not know, or one of another type.
    """
    for key, value in decision.settings.items():
        if key not in defaults:
            known = ", ".join(sorted(defaults))
            raise ValueError(f"{decision.technique} has no setting {key!r}; known: {known}")
        if type(value) is not type(defaults[key]):
            wanted = type(defaults[key]).__name__
            raise ValueError(f"{decision.technique}: {key} must be of type {wanted}, got {value!r}")
    found = {**defaults, **decision.settings}
    if "granularity" in defaults and "group_size" in decision.settings:
        found["granularity"] = decision.settings.get("granularity", "group")
    return found


def choice(settings: Mapping[str, Scalar], key: str, allowed: Sequence[str]) -> str:
    """A setting that must be one of a few words.

    Raises:
        ValueError: It is none of them.
    """
    value = settings[key]
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {value!r}")
    return value
