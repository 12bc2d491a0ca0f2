"""``python -m benchmarks [NAME | all]``: lists the claims, or measures one beside its rivals.

Exit code 0: every bar holds. 1: one does not. 2: wrong arguments, missing data, or a rival that
cannot be installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import (
    bounded_memory,
    cifar_int8,
    cifar_low_bits,
    cifar_qat,
    lean_import,
    lenet_binary,
    minilm_int8,
    minilm_w4,
    quantize_speed,
    refuses_slower,
    results,
    stories_low_bits,
)
from benchmarks.cifar10 import DEFAULT_SHARED
from benchmarks.claims import Claim, Context, Outcome
from benchmarks.processes import ROOT
from flyweight._atomic import write_text
from flyweight.errors import FlyweightError, InputError

CLAIMS = (
    cifar_int8.CLAIM,
    minilm_int8.CLAIM,
    minilm_w4.CLAIM,
    stories_low_bits.CLAIM,
    cifar_low_bits.CLAIM,
    cifar_qat.CLAIM,
    lenet_binary.CLAIM,
    quantize_speed.CLAIM,
    refuses_slower.CLAIM,
    lean_import.CLAIM,
    bounded_memory.CLAIM,
)
ALL = "all"
REFERENCE_THREADS = 2  # the claims are about a machine with two cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; the exit code."""
    asked = _parser().parse_args(arguments)
    console = Console(stderr=asked.json)  # with --json, standard output holds JSON alone
    try:
        if asked.write_docs:
            write_text(results.PAGE, results.page(CLAIMS))
            return 0
        if asked.name is None:
            _list(console)
            return 0
        chosen = [claim for claim in CLAIMS if asked.name in (claim.name, ALL)]
        if not chosen:
            raise InputError(
                f"no claim is called {asked.name!r}; known: {ALL}, {', '.join(c.name for c in CLAIMS)}"
            )
        held = [_measure(claim, asked, console) for claim in chosen]
    except FlyweightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(held) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures what the project claims."
    )
    parser.add_argument("name", nargs="?", help="a claim, or 'all'; without it the claims are listed")
    parser.add_argument("--quick", action="store_true", help="fewer examples and rounds; nothing is stored")
    parser.add_argument("--json", action="store_true", help="one line of JSON a claim on standard output")
    parser.add_argument(
        "--shared", type=Path, default=DEFAULT_SHARED, help="folder with data/ (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=REFERENCE_THREADS, help="of every runtime that is timed"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for the states of trainings: a run that was killed goes on from them",
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="write docs/benchmarks.md from the stored results"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _list(console: Console) -> None:
    table = Table("claim", "what we say", "bar")
    for claim in CLAIMS:
        table.add_row(claim.name, claim.sentence, claim.bar)
    console.print(table)


def _measure(claim: Claim, asked: argparse.Namespace, console: Console) -> bool:
    """Measure one claim, show and store it; whether it holds."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as work:
        context = Context(
            shared=asked.shared.resolve(),
            work=Path(work),
            threads=asked.threads,
            quick=asked.quick,
            kept=None if asked.keep is None else asked.keep / claim.name,
        )
        with console.status(f"measuring {claim.name}"):
            outcome = claim.run(context)
    _show(claim, outcome, console)
    if not asked.quick:
        console.print(f"stored in {results.store(claim.name, outcome, context).relative_to(ROOT)}")
    if asked.json:
        print(json.dumps(outcome.to_json(claim.name)), flush=True)
    return outcome.holds


def _show(claim: Claim, outcome: Outcome, console: Console) -> None:
    table = Table("what", "ours", "bar", "95 % interval", "rivals", "holds", title=claim.sentence)
    for check in outcome.checks:
        table.add_row(*results.cells(check))
    console.print(table)
    for note in outcome.notes:
        console.print(f"note: {note}")
    console.print(f"{claim.name}: {'holds' if outcome.holds else 'does not hold'}")


if __name__ == "__main__":
    sys.exit(main())
