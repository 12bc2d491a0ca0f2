"""Rivals run in environments of their own, made on demand under ``.rivals/``; files go in and out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from benchmarks import processes
from benchmarks.processes import ROOT
from flyweight.errors import MissingDependency
from flyweight.run.onnxruntime import NO_TELEMETRY

CONSTRAINTS = ROOT / "constraints.txt"
ENVIRONMENTS = ROOT / ".rivals"


@final
@dataclass(frozen=True)
class Rival:
    """A tool to be compared with.

    Attributes:
        name: Begins the name of its environment.
        requirements: What pip installs there.
        script: Run there as ``python SCRIPT job.json arrays.npz result.json``; imports nothing from here.
    """

    name: str
    requirements: tuple[str, ...]
    script: Path


ONNXRUNTIME = Rival(
    "onnxruntime",
    # sympy: its symbolic shape inference; onnx-ir: its MatMulNBits
    ("onnxruntime==1.31.1", "onnx==1.23.2", "sympy==1.14.0", "onnx-ir==1.1.0"),
    ROOT / "benchmarks" / "rival_onnxruntime.py",
)
WEIGHTS = Rival(
    "weights",
    ("llmcompressor==0.14.0.1", "hqq==0.2.8.post1"),
    ROOT / "benchmarks" / "rival_weights.py",
)
AUTOROUND = Rival("autoround", ("auto-round==0.16.1",), ROOT / "benchmarks" / "rival_autoround.py")
K_QUANT = Rival("onnxruntime", ONNXRUNTIME.requirements, ROOT / "benchmarks" / "rival_k_quant.py")


def run(
    rival: Rival, job: Mapping[str, Any], *, arrays: Mapping[str, np.ndarray], work: Path
) -> dict[str, Any]:
    """What the rival's script answered to ``job``, a JSON object in and out.

    Raises:
        MissingDependency: Its environment cannot be made.
        RuntimeError: The script failed; the message holds the end of what it printed.
    """
    python = environment(rival)
    work.mkdir(parents=True, exist_ok=True)
    job_file, arrays_file, result_file = work / "job.json", work / "arrays.npz", work / "result.json"
    job_file.write_text(json.dumps(job))
    np.savez(arrays_file, **dict(arrays))  # type: ignore[arg-type]  # the stub mistakes the arrays for its allow_pickle
    quiet = {**os.environ, NO_TELEMETRY: "1"}
    done = processes.run([python, "-I", rival.script, job_file, arrays_file, result_file], environment=quiet)
    if done.returncode:
        raise RuntimeError(
            f"{rival.script.name} failed in its environment: {processes.last_line(done.stderr)}"
        )
    answer: dict[str, Any] = json.loads(result_file.read_text())
    return answer


def environment(rival: Rival, *, constraints: Path = CONSTRAINTS) -> Path:
    """The interpreter of the rival's environment, built if there is none that fits.

    Raises:
        MissingDependency: pip could not install a requirement.
    """
    identity = _identity(rival, constraints)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    home = ENVIRONMENTS / f"{rival.name}-{digest}"
    python, mark = home / "bin" / "python", home / "flyweight-rival.json"
    if python.exists() and mark.is_file() and json.loads(mark.read_text()) == identity:
        return python
    shutil.rmtree(home, ignore_errors=True)  # half-built, or made by an interpreter that is gone
    made = processes.run(
        [sys.executable, "-m", "venv", home, *([] if rival.requirements else ["--without-pip"])]
    )
    if made.returncode == 0 and rival.requirements:
        made = processes.run(
            [python, "-m", "pip", "install", "--quiet", "-c", constraints, *rival.requirements]
        )
    if made.returncode:
        raise MissingDependency(
            f"the environment of the rival {rival.name} cannot be made: {processes.last_line(made.stderr)}"
        )
    mark.write_text(json.dumps(identity))
    return python


def _identity(rival: Rival, constraints: Path) -> dict[str, Any]:
    """What an environment depends on; one made from anything else is not used again."""
    return {
        "requirements": list(rival.requirements),
        "constraints": constraints.read_text(),
        "python": sys.version,
        "interpreter": sys.base_prefix,
        "platform": platform.platform(),
    }
