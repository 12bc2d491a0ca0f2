"""``flyweight compress`` as someone who read only the README types it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from benchmarks import processes
from benchmarks.cifar10 import SHARED_VARIABLE
from benchmarks.claims import Check

REFUSED = 3
PATIENCE_S = 120.0  # what a newcomer is asked to wait, on two cores


@final
@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of the command.

    Attributes:
        exit_code: 0 shipped, 3 refused.
        seconds: Wall time of the process.
        out: The folder asked for, whether or not it is there.
        message: What the command printed, to standard output and then to standard error.
    """

    exit_code: int
    seconds: float
    out: Path
    message: str

    @property
    def model_file(self) -> Path | None:
        """The shipped model; None if there is none."""
        return self.out / "model.onnx" if self.exit_code == 0 else None

    def storage_bytes(self) -> int | None:
        """All files the device needs, sizes taken from the disk; None if nothing was shipped."""
        if self.exit_code:
            return None
        needed: dict[str, object] = json.loads((self.out / "manifest.json").read_text())["files"]
        return sum((self.out / name).stat().st_size for name in [*needed, "manifest.json"])

    def notes(self, name: str) -> tuple[str, ...]:
        """Why nothing was shipped; () if something was."""
        if self.exit_code == 0:
            return ()
        return (f"{name}: ended with exit code {self.exit_code}: {self.last_line()}",)

    def last_line(self) -> str:
        """What the command said last, without the machine's paths."""
        return processes.last_line(self.message).replace(str(self.out), "OUT")

    def time_check(self, name: str) -> Check:
        """The newcomer's time against what they are asked to wait."""
        seconds = None if self.exit_code else self.seconds
        return Check(
            what=f"{name}: time of the command, s", ours=seconds, bar=PATIENCE_S, direction="at most"
        )


def compress(words: Sequence[str | Path], *, out: Path, shared: Path) -> Attempt:
    """Run ``flyweight compress WORDS -o OUT`` from the root of the repository.

    Args:
        words: Model, data and options.
        out: The folder to ask for; must not exist.
        shared: Told to the data loaders of this folder.
    """
    command = [sys.executable, "-m", "flyweight", "compress", *words, "-o", out]
    environment = {**os.environ, SHARED_VARIABLE: str(shared)}
    start = time.perf_counter()
    done = processes.run(command, environment=environment)
    seconds = time.perf_counter() - start
    return Attempt(
        exit_code=done.returncode, seconds=seconds, out=out, message=f"{done.stdout}\n{done.stderr}"
    )
