"""What a claim is, and what came out of measuring it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

from flyweight.errors import InputError

Direction = Literal["at least", "at most"]

FLOAT = "fp32"  # the original among the candidates
OURS = "flyweight"


@final
@dataclass(frozen=True, kw_only=True)
class Context:
    """How a claim is to be measured.

    Attributes:
        shared: Folder with the data and models that are not in the repository.
        work: An empty folder for files made on the way.
        threads: Threads of every runtime that is timed.
        quick: Fewer examples and rounds: shows that the benchmark works, decides nothing.
        kept: For the states of trainings, from which a run that was killed goes on; None is ``work``.
    """

    shared: Path
    work: Path
    threads: int
    quick: bool
    kept: Path | None = None

    def data(self, *parts: str) -> Path:
        """A file of the shared data, ``data("stsb", "stsb-en-dev.csv")``.

        Raises:
            InputError: It is not there.
        """
        path = self.shared.joinpath("data", *parts)
        if not path.is_file():
            raise InputError(f"no file {path}: give the folder that holds data/ with --shared PATH")
        return path


@final
@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured quantity against its bar.

    Attributes:
        what: The quantity with its unit, ``"resnet20: newcomer's time, s"``.
        ours: None where there was nothing to measure, because no file was shipped.
        bar: None where the quantity is reported only.
        direction: On which side of the bar ``ours`` has to be.
        rivals: The same quantity of each rival.
        spread: 95 % interval of ``ours``.
    """

    what: str
    ours: float | None
    bar: float | None = None
    direction: Direction = "at least"
    rivals: Mapping[str, float] = field(default_factory=dict)
    spread: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        """Whether the bar is met; what has no bar holds, and what was not measured does not."""
        if self.bar is None:
            return True
        if self.ours is None:
            return False
        return self.ours >= self.bar if self.direction == "at least" else self.ours <= self.bar

    def bar_text(self) -> str:
        """The bar as a reader sees it, ``"≥ 3.6"``; empty where there is none."""
        if self.bar is None:
            return ""
        return f"{'≥' if self.direction == 'at least' else '≤'} {number(self.bar)}"


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All checks of one claim.

    Attributes:
        checks: At least one.
        notes: What the reader must know: why nothing was shipped, which rival was kept.
        versions: Of the rivals' packages.
    """

    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("an outcome needs at least one check")

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)

    def to_json(self, claim: str) -> dict[str, Any]:
        """The line that ``--json`` prints: each of ours, rivals and bar by the name of its check."""
        return {
            "claim": claim,
            "ours": {c.what: c.ours for c in self.checks},
            "rivals": {c.what: dict(c.rivals) for c in self.checks if c.rivals},
            "bar": {c.what: {c.direction: c.bar} for c in self.checks if c.bar is not None},
            "holds": self.holds,
        }


@final
@dataclass(frozen=True)
class Claim:
    """A sentence the project says of itself, the bar in words, and the measurement that decides it."""

    name: str
    sentence: str
    bar: str
    run: Callable[[Context], Outcome]


def compared(
    what: str,
    candidates: Mapping[str, float],
    *,
    bar: float | None = None,
    direction: Direction = "at least",
    spread: tuple[float, float] | None = None,
) -> Check:
    """The check of a quantity measured of every candidate: `OURS` (if shipped), `FLOAT` and the rivals."""
    rivals = {name: value for name, value in candidates.items() if name != OURS}
    return Check(
        what=what, ours=candidates.get(OURS), bar=bar, direction=direction, rivals=rivals, spread=spread
    )


def number(value: float | None) -> str:
    """A figure as tables show it: four digits below a thousand, whole numbers with thin groups above."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
