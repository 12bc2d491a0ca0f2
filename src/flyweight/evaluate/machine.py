"""What measurements were taken with: package versions and the kind of machine, without its name."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("flyweight", "torch", "numpy", "onnx", "onnxruntime", "openvino", "transformers", "tokenizers")
# What decides the speed of int8 and of float kernels.
_INSTRUCTION_SETS = (
    *("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimddp", "i8mm", "sve"),
)


def versions() -> Mapping[str, str]:
    """Installed versions of the packages that influence results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> Mapping[str, str]:
    """Architecture, processor, cores and instruction sets."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"system": platform.system(), "architecture": platform.machine(), "cores": str(cores)}
    info = _cpu_info()
    if info.get("model name"):
        found["processor"] = info["model name"]
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if flags:
        found["instruction sets"] = " ".join(name for name in _INSTRUCTION_SETS if name in flags)
    return found


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
