"""Other programs, run and listened to."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the repository


def run(
    words: Sequence[str | Path], *, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished program, started in the root of the repository, with what it printed.

    Args:
        words: The program and its arguments.
        environment: Of the program; None is this process's.
    """
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env=None if environment is None else dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(text: str) -> str:
    """The last line that is not empty: where programs say what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
