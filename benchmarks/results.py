"""The last full result of each claim, kept in ``benchmarks/results``, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.claims import Check, Claim, Context, Outcome, number
from benchmarks.processes import ROOT
from flyweight._atomic import write_text
from flyweight.core.json_text import parse_json
from flyweight.errors import InputError
from flyweight.evaluate.machine import machine, versions

FOLDER = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
RESULT_VERSION = 1
MAX_RESULT_BYTES = 1_000_000


def store(claim: str, outcome: Outcome, context: Context, *, folder: Path = FOLDER) -> Path:
    """Write the result of a full run, with what it belongs to; the file is returned.

    Raises:
        ValueError: The run was a quick one.
    """
    if context.quick:
        raise ValueError("a quick run decides nothing and is not stored")
    result = {
        "version": RESULT_VERSION,
        "claim": claim,
        "date": datetime.now(UTC).date().isoformat(),
        "threads": context.threads,
        "machine": dict(machine()),
        "versions": dict(versions()),
        "rival versions": dict(outcome.versions),
        "checks": [asdict(check) for check in outcome.checks],
        "notes": list(outcome.notes),
        "holds": outcome.holds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{claim}.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    return path


def page(claims: Sequence[Claim], *, folder: Path = FOLDER) -> str:
    """docs/benchmarks.md: every claim with its last result, or the word that there is none.

    Raises:
        InputError: A stored result is damaged, or of another version.
    """
    parts = [
        "# Benchmarks",
        "",
        "Measured by `python -m benchmarks NAME`; written by `python -m benchmarks --write-docs`. Rivals run",
        "beside ours, on the same data and in the same timing loop. Speed above 1 is faster.",
    ]
    for claim in claims:
        parts += ["", f"## {claim.name}", "", claim.sentence, "", f"Bar: {claim.bar}.", ""]
        path = folder / f"{claim.name}.json"
        parts += _section(_read(path)) if path.is_file() else ["Not measured yet."]
    return "\n".join(parts) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        result = parse_json(path.read_text(), path.name, max_bytes=MAX_RESULT_BYTES)
    except ValueError as error:
        raise InputError(f"{error}; measure the claim again") from error
    version = result.get("version") if isinstance(result, dict) else None
    if not isinstance(result, dict) or version != RESULT_VERSION:
        raise InputError(f"{path} is of version {version!r}; measure the claim again")
    return result


def _section(result: dict[str, Any]) -> list[str]:
    lines = ["| what | ours | bar | 95 % interval | rivals | holds |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cells(Check(**check)))} |" for check in result["checks"]]
    lines += ["", *(f"- {note}" for note in result["notes"])]
    kind = result["machine"]
    processor, instructions = kind.get("processor", "a processor"), kind.get("instruction sets", "?")
    lines.append(
        f"Measured {result['date']} with {result['threads']} threads on {processor}, "
        f"{kind['cores']} cores, {kind['system']} {kind['architecture']} ({instructions}); "
        f"{_listed(result['versions'])}."
    )
    if result["rival versions"]:
        lines.append(f"Rivals made with {_listed(result['rival versions'])}.")
    return lines


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def cells(check: Check) -> tuple[str, ...]:
    """What a table row shows: what, ours, bar, interval, rivals, holds."""
    interval = "" if check.spread is None else f"{number(check.spread[0])} to {number(check.spread[1])}"
    rivals = ", ".join(f"{name} {number(value)}" for name, value in check.rivals.items())
    holds = "" if check.bar is None else "yes" if check.holds else "no"
    return check.what, number(check.ours), check.bar_text(), interval, rivals, holds
