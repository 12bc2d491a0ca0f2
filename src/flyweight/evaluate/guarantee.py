"""The guarantee: a file that is bigger, slower or worse than allowed is not shipped."""

from __future__ import annotations

from flyweight.core.cost import Budget
from flyweight.core.report import Comparison, Measurement, Verdict

# A file measured against itself, loaded anew, comes out up to 2 % apart on a machine with other work to do.
SPEED_TOLERANCE = 0.02


def judge(original: Measurement, compressed: Measurement, comparison: Comparison, budget: Budget) -> Verdict:
    """Whether the compressed files may be shipped, and if not, every reason.

    Slower means that the whole confidence interval of the speed-up lies below 1 - `SPEED_TOLERANCE`, so that
    noise alone refuses nothing. A latency bound given by the user replaces the comparison with the original;
    the other bounds come on top.
    """
    found = [
        *_larger(original, compressed, budget),
        *_slower(compressed, comparison, budget),
        *_worse(comparison, budget),
        *_hungrier(compressed, budget),
    ]
    return Verdict(shipped=not found, reasons=tuple(found))


def caveats(comparison: Comparison, budget: Budget) -> tuple[str, ...]:
    """What the verdict allows that its reader must know all the same."""
    notes, drop, speedup = [], comparison.quality_drop, comparison.speedup
    interval = f"95 % interval {speedup.low:.2f} to {speedup.high:.2f}"
    if budget.latency_s is not None and _is_slower(comparison):
        notes.append(
            f"it is slower than the original, {speedup.value:.2f} times its speed ({interval}), "
            "which the latency asked for allows"
        )
    elif budget.latency_s is None and speedup.value < 1.0 and not _is_slower(comparison):
        notes.append(
            f"it is as fast as the original as far as could be measured: {speedup.value:.2f} times its speed "
            f"({interval}, and {SPEED_TOLERANCE:.0%} are put down to the machine); more --seconds tell more"
        )
    if budget.quality_drop is not None and drop.value <= budget.quality_drop < drop.high:
        notes.append(
            f"the drop is within what is allowed, but {comparison.examples} examples do not prove it: "
            f"the 95 % interval reaches {drop.high:.4g}"
        )
    return tuple(notes)


def _larger(original: Measurement, compressed: Measurement, budget: Budget) -> list[str]:
    reasons = []
    if compressed.storage_bytes >= original.storage_bytes:
        before = original.storage_bytes
        reasons.append(
            f"it is not smaller: {compressed.storage_bytes} bytes against {before} of the original"
        )
    if budget.storage_bytes is not None and compressed.storage_bytes > budget.storage_bytes:
        over = compressed.storage_bytes / budget.storage_bytes - 1
        reasons.append(
            f"it takes {compressed.storage_bytes} bytes, "
            f"{over:.1%} over the {budget.storage_bytes:.0f} allowed"
        )
    return reasons


def _slower(compressed: Measurement, comparison: Comparison, budget: Budget) -> list[str]:
    if budget.latency_s is not None:
        if compressed.latency.p50_s <= budget.latency_s:
            return []
        over = compressed.latency.p50_s / budget.latency_s - 1
        took, allowed = compressed.latency.p50_s * 1e3, budget.latency_s * 1e3
        return [f"it takes {took:.3g} ms, {over:.1%} over the {allowed:.3g} ms allowed"]
    speedup = comparison.speedup
    if not _is_slower(comparison):
        return []
    return [
        f"it is slower than the original: {speedup.value:.2f} times its speed "
        f"(95 % interval {speedup.low:.2f} to {speedup.high:.2f})"
    ]


def _is_slower(comparison: Comparison) -> bool:
    return comparison.speedup.high < 1.0 - SPEED_TOLERANCE


def _worse(comparison: Comparison, budget: Budget) -> list[str]:
    drop = comparison.quality_drop
    if budget.quality_drop is None or drop.value <= budget.quality_drop:
        return []
    return [
        f"quality drops by {drop.value:.4g} (95 % interval {drop.low:.4g} to {drop.high:.4g}), "
        f"{budget.quality_drop:.4g} is allowed"
    ]


def _hungrier(compressed: Measurement, budget: Budget) -> list[str]:
    reasons = []
    peak = compressed.peak_rss_bytes
    if budget.ram_bytes is not None and peak is None:
        reasons.append("peak memory cannot be measured on this system, so the memory budget is not proven")
    elif budget.ram_bytes is not None and peak is not None and peak > budget.ram_bytes:
        reasons.append(f"it takes {peak} bytes of memory at its peak, {budget.ram_bytes:.0f} are allowed")
    energy = compressed.energy
    if budget.energy_j is not None and energy is None:
        reasons.append("energy cannot be measured on this machine, so the energy budget is not proven")
    elif budget.energy_j is not None and energy is not None and energy.joules > budget.energy_j:
        reasons.append(f"it takes {energy.joules:.3g} J an example, {budget.energy_j:.3g} J are allowed")
    return reasons


def shortfall(
    verdict: Verdict, compressed: Measurement, comparison: Comparison, budget: Budget
) -> tuple[float, ...]:
    """A key that orders attempts: fewer broken bounds first, then the smaller and faster one."""
    pace = compressed.latency.p50_s
    drop = max(comparison.quality_drop.value - (budget.quality_drop or 0.0), 0.0)
    return float(len(verdict.reasons)), drop, compressed.storage_bytes * pace
