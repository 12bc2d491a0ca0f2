"""Peak resident memory of a model, in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flyweight.errors import FlyweightError

PROBE = "flyweight.evaluate.memory_probe"
TIMEOUT_S = 600.0


def peak_rss_bytes(
    artifact_path: Path, runtime: str, inputs: Mapping[str, np.ndarray], *, threads: int, runs: int = 3
) -> int | None:
    """Peak resident memory while a fresh Python process loads the artifact and runs it, less what it had.

    It had the runtime's library and the inputs. None where the system does not tell, or where importing the
    library peaked higher and the peak cannot be reset. On macOS it is the growth above that earlier peak.

    Args:
        artifact_path: The artifact's folder.
        runtime: Its name in the catalog.
        inputs: Input name to (batch, ...) values.
        threads: Threads of the runtime; 0 is as many as the machine has cores.
        runs: Forward passes.

    Raises:
        ValueError: ``runs`` is below 1.
        FlyweightError: The process failed; the message holds its last line.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    with tempfile.TemporaryDirectory(prefix="flyweight-") as folder:
        file = Path(folder) / "inputs.npz"
        with file.open("wb") as stream:
            np.savez(stream, np.array(list(inputs)), *inputs.values())
        command = [sys.executable, "-P", "-m", PROBE, str(artifact_path.resolve()), runtime, str(file)]
        answer = _last_line_of([*command, str(threads), str(runs)], artifact_path)
    peak = json.loads(answer)["peak_bytes"]
    return None if peak is None else int(peak)


def _last_line_of(command: list[str], artifact_path: Path) -> str:
    """What the probe printed last."""
    where = f"measuring the memory of {artifact_path.name} in a process of its own"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FlyweightError(f"{where} took more than {TIMEOUT_S:.0f} s") from error
    if done.returncode < 0:
        raise FlyweightError(f"{where} ended by signal {-done.returncode}: the machine may lack the memory")
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise FlyweightError(f"{where} failed: {lines[-1]}")
    return done.stdout.strip().splitlines()[-1]
