"""Energy of one example: read from the processor's counters, or else estimated, and said which.

Source: Horowitz 2014, doi:10.1109/ISSCC.2014.6757323, figure 1.1.9 (45 nm, 0.9 V).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from flyweight.core.report import Energy

RAPL_ROOT = Path("/sys/class/powercap")
# Energy of a multiplication plus the addition that accumulates it, in joules, by width of the operands.
# 8 bit: 0.2 pJ and a 32-bit integer addition of 0.1 pJ; float16: 1.1 + 0.4; float32: 3.7 + 0.9.
MAC_J = {8: 0.3e-12, 16: 1.5e-12, 32: 4.6e-12}
DRAM_BYTE_J = 640e-12 / 4  # 640 pJ for 32 bits: 1.3 nJ for 64 bits, the low end of the paper's range


def measure_energy(
    call: Callable[[], object], *, examples: int, seconds: float, root: Path = RAPL_ROOT
) -> Energy | None:
    """Mean energy of one example from the RAPL counters; None where there are none, or they may not be read.

    The counters are of whole processor packages (and of memory where they have it), so other programs and
    idle power are in it: compare two models on a quiet machine only.

    Limits: a counter that wraps twice within the run is not noticed; at 300 W that takes over 10 minutes.

    Args:
        call: One forward pass.
        examples: In one call.
        seconds: Time to repeat it for.
        root: Where the kernel shows the counters.

    Raises:
        ValueError: ``seconds`` is not above 0, or ``examples`` below 1.
    """
    if seconds <= 0 or examples < 1:
        raise ValueError(f"seconds must be above 0 and examples at least 1, got {seconds} and {examples}")
    domains = _domains(root)
    before = _read(domains)
    if not before:
        return None
    calls, deadline = 0, time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < deadline:
        call()
        calls += 1
    after = _read(domains)
    used = [_difference_uj(domain, before[domain], after[domain]) for domain in before if domain in after]
    if len(used) < len(before) or min(used) < 0 or sum(used) == 0:
        return None
    names = ", ".join(sorted({domains[domain] for domain in before}))
    method = f"RAPL counters of {names}, idle power included, mean of {calls} calls"
    return Energy(joules=sum(used) * 1e-6 / (calls * examples), method=method)


def estimate_energy(macs: Mapping[int, int], storage_bytes: int | float) -> Energy:
    """A coarse estimate: the multiplications, and every stored byte read from memory once.

    Activations are taken to stay in caches, and control and idle power to be free.

    Args:
        macs: Multiply-accumulates of one example by the bits of the wider operand: 32 for weights of 4 bits
            that are multiplied with float32 activations. Priced as the next of 8, 16 (float), 32 (float).
        storage_bytes: Bytes of the weights; those of a batch's share where several examples share a pass.

    Raises:
        ValueError: A count is negative, or bits are above 32 or not above 0.
    """
    if storage_bytes < 0 or min(macs.values(), default=0) < 0:
        raise ValueError(f"macs and storage_bytes must be at least 0, got {dict(macs)} and {storage_bytes}")
    if not all(0 < bits <= 32 for bits in macs):
        raise ValueError(f"bits must be above 0 and at most 32, got {sorted(macs)}")
    counted = Counter[int]()
    for bits, count in macs.items():
        counted[min(width for width in MAC_J if width >= bits)] += count
    prices = ", ".join(f"{MAC_J[w] * 1e12:.1f} pJ a {w}-bit" for w, n in sorted(counted.items()) if n)
    method = (
        f"Horowitz 2014 at 45 nm: {prices or 'no'} multiply-accumulate, "
        f"{DRAM_BYTE_J * 1e12:.0f} pJ a byte of weights, each read once from DRAM; nothing else counted"
    )
    work = sum(count * MAC_J[width] for width, count in counted.items())
    return Energy(joules=work + storage_bytes * DRAM_BYTE_J, method=method)


def _domains(root: Path) -> dict[Path, str]:
    """Counters that do not overlap, and their names: packages and their DRAM, not the cores inside."""
    named = {folder: _text(folder / "name") or "" for folder in sorted(root.glob("intel-rapl:*"))}
    return {folder: name for folder, name in named.items() if name == "dram" or name.startswith("package")}


def _read(domains: Mapping[Path, str]) -> dict[Path, int]:
    texts = {folder: _text(folder / "energy_uj") for folder in domains}
    return {folder: int(text) for folder, text in texts.items() if text is not None and text.isdigit()}


def _difference_uj(domain: Path, before: int, after: int) -> int:
    """Microjoules between two readings; negative if the counter wrapped and its largest value is unknown."""
    if after >= before:
        return after - before
    largest = _text(domain / "max_energy_range_uj")
    return after - before + (int(largest) + 1 if largest and largest.isdigit() else 0)


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:  # absent, or readable by root only
        return None
