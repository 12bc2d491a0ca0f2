"""A plan: which technique is applied to which layers, with which settings. JSON in, JSON out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any

from flyweight.core.json_text import parse_json

PLAN_VERSION = 1
MAX_PLAN_BYTES = 64_000_000

Scalar = bool | int | float | str


class Stage(IntEnum):
    """Order of application: each stage sees the output of the one before."""

    STRUCTURE = 0  # changes shapes: channels, heads, layers removed
    FACTORIZE = 1  # one layer becomes several: low rank
    SPARSIFY = 2  # zeroes weights
    TRANSFORM = 3  # moves scales or rotates axes between layers; the model computes the same
    QUANTIZE = 4  # changes the number format of weights, or shares values
    CACHE = 5  # changes the number format of what attention keeps of earlier tokens
    ACTIVATIONS = 6  # changes the number format of what the layers read
    CODE = 7  # changes how the stored numbers are written


@dataclass(frozen=True)
class Decision:
    """Apply ``technique`` with ``settings`` to ``layers``, which are decided together."""

    technique: str
    layers: tuple[str, ...]
    stage: Stage
    settings: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"a {self.technique} decision names no layer")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"a {self.technique} decision names a layer twice: {', '.join(self.layers)}")
        for key, value in self.settings.items():
            if not isinstance(value, bool | int | float | str):
                given = type(value).__name__
                raise TypeError(
                    f"setting {key!r} of {self.technique} must be a bool, number or text, got {given}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"setting {key!r} of {self.technique} must be finite, got {value}")
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __hash__(self) -> int:
        return hash((self.technique, self.layers, self.stage, tuple(sorted(self.settings.items()))))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy cannot be copied by itself
        return Decision, (self.technique, self.layers, self.stage, dict(self.settings))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "technique": self.technique,
            "stage": self.stage.name.lower(),
            "layers": list(self.layers),
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Plan:
    """Decisions for one model.

    Raises:
        ValueError: Two decisions of one stage name the same layer.
    """

    model: str
    decisions: tuple[Decision, ...] = ()

    def __post_init__(self) -> None:
        seen: set[tuple[str, Stage]] = set()
        for decision in self.decisions:
            for layer in decision.layers:
                if (layer, decision.stage) in seen:
                    raise ValueError(f"two {decision.stage.name.lower()} decisions for layer {layer!r}")
                seen.add((layer, decision.stage))

    def add(self, decision: Decision) -> Plan:
        """A plan with one more decision."""
        return Plan(self.model, (*self.decisions, decision))

    def in_stage_order(self) -> tuple[Decision, ...]:
        """Decisions as they are carried out; those alike but for their layers are joined into one."""
        joined: dict[tuple[Stage, str, tuple[tuple[str, Scalar], ...]], Decision] = {}
        for d in self.decisions:
            key = (d.stage, d.technique, tuple(sorted(d.settings.items())))
            before = joined[key].layers if key in joined else ()
            joined[key] = Decision(d.technique, (*before, *d.layers), d.stage, d.settings)
        return tuple(sorted(joined.values(), key=lambda d: d.stage))

    def of_layer(self, name: str) -> tuple[Decision, ...]:
        """The decisions that touch one layer, in stage order."""
        return tuple(sorted((d for d in self.decisions if name in d.layers), key=lambda d: d.stage))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of `from_dict`."""
        return {
            "version": PLAN_VERSION,
            "model": self.model,
            "decisions": [d.to_dict() for d in self.decisions],
        }

    def to_json(self) -> str:
        """Readable, diffable text; the inverse of `from_json`."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            ValueError: `parse_json` refuses the text, or it is of another version, or not a plan.
        """
        return Plan.from_dict(parse_json(text, "plan", max_bytes=MAX_PLAN_BYTES))

    @staticmethod
    def from_dict(raw: object) -> Plan:
        """Build a plan from plain JSON values; raises as `from_json` does."""
        if not isinstance(raw, dict):
            raise ValueError(f"a plan is a JSON object, got {type(raw).__name__}")
        if raw.get("version") != PLAN_VERSION:
            raise ValueError(f"plan version is {raw.get('version')!r}; this release reads {PLAN_VERSION}")
        unknown = set(raw) - {"version", "model", "decisions"}
        if unknown:
            raise ValueError(f"plan holds unknown keys: {', '.join(sorted(map(str, unknown)))}")
        model, decisions = raw.get("model"), raw.get("decisions")
        if not isinstance(model, str) or not isinstance(decisions, list):
            raise ValueError("a plan needs 'model' (text) and 'decisions' (a list)")
        return Plan(model, tuple(_decision(i, d) for i, d in enumerate(decisions)))


def _decision(index: int, raw: object) -> Decision:
    where = f"decision {index} of the plan"
    if not isinstance(raw, dict) or set(raw) != {"technique", "stage", "layers", "settings"}:
        raise ValueError(f"{where} must have exactly the keys technique, stage, layers, settings")
    technique, stage, layers, settings = raw["technique"], raw["stage"], raw["layers"], raw["settings"]
    if not isinstance(technique, str):
        raise ValueError(f"{where}: technique must be text")
    if not isinstance(stage, str) or stage.upper() not in Stage.__members__:
        raise ValueError(
            f"{where}: stage must be one of {', '.join(s.name.lower() for s in Stage)}, got {stage!r}"
        )
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        raise ValueError(f"{where}: layers must be a list of names")
    if not isinstance(settings, dict):
        raise ValueError(f"{where}: settings must be an object")
    try:
        return Decision(technique, tuple(layers), Stage[stage.upper()], settings)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
