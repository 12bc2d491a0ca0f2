"""Run by `flyweight.evaluate.memory` in a process of its own: loads an artifact, runs it, prints the peak.

``python -m flyweight.evaluate.memory_probe ARTIFACT RUNTIME INPUTS.npz THREADS RUNS``
"""

from __future__ import annotations

import gc
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from flyweight import catalog
from flyweight.run.artifact import open_artifact
from flyweight.run.onnxruntime import onnxruntime_module
from flyweight.run.openvino import openvino_module

# What a runtime imports when it loads its first model: brought in before, as it is no cost of the model.
# The first two are imported so that they send no telemetry.
LIBRARIES: Mapping[str, Callable[[], object]] = {
    "onnxruntime": onnxruntime_module,
    "openvino": openvino_module,
    "pytorch": partial(importlib.import_module, "torch"),
}
PROC = Path("/proc/self")


def main(arguments: list[str]) -> None:
    """Print ``{"peak_bytes": 123}``; null where the system does not tell."""
    path, runtime_name, inputs_file, threads, runs = arguments
    runtime = catalog.get("runtime", runtime_name)()
    _import_library(runtime_name)
    with np.load(inputs_file, allow_pickle=False) as stored:
        names, *values = (stored[entry] for entry in stored.files)
    artifact = open_artifact(Path(path))
    gc.collect()
    peak_is_reset = _reset_peak()
    before = _resident()
    peak_before = before if peak_is_reset else _peak()
    session = runtime.load(artifact, int(threads))
    for _ in range(int(runs)):
        session(dict(zip(names.tolist(), values, strict=True)))
    print(json.dumps({"peak_bytes": _growth(before, peak_before, _peak())}))  # noqa: T201 - the probe's answer


def _import_library(runtime_name: str) -> None:
    if runtime_name in LIBRARIES:
        LIBRARIES[runtime_name]()


def _growth(before: int | None, peak_before: int | None, peak_after: int | None) -> int | None:
    """Bytes of the peak above ``before``; None if unknown, as when an earlier peak hides it."""
    if before is None or peak_before is None or peak_after is None:
        return None
    hidden = peak_after == peak_before > before
    return None if hidden else peak_after - before


def _reset_peak() -> bool:
    """Set the kernel's peak to what is resident now; False where it is not Linux, or not permitted."""
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident() -> int | None:
    return _status_bytes("VmRSS") if PROC.exists() else _largest_resident()


def _peak() -> int | None:
    return _status_bytes("VmHWM") if PROC.exists() else _largest_resident()


def _status_bytes(field: str) -> int | None:
    found = re.search(rf"^{field}:\s*(\d+) kB$", (PROC / "status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _largest_resident() -> int | None:
    """Peak of this process on macOS, in bytes; None on other systems."""
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(sys.argv[1:])
