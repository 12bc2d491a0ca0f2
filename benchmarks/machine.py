"""The kind of machine and the versions a figure belongs to; no host name."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("flyweight", "torch", "onnx", "onnxruntime", "numpy", "transformers")
# What decides the speed of int8 and of float kernels.
INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)


def kind() -> dict[str, str]:
    """Processor, cores and instruction sets as the system tells them."""
    lines = _cpuinfo()
    flags = set((lines.get("flags") or lines.get("Features") or "").split())
    return {
        "processor": lines.get("model name") or platform.machine(),
        "architecture": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "instruction sets": " ".join(name for name in INSTRUCTION_SETS if name in flags),
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that are installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """Key to value of the first processor; {} where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
