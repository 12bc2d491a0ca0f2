"""The guarantee: a file that is bigger, slower or worse than allowed is not shipped."""

from __future__ import annotations

from flyweight.core.cost import Budget
from flyweight.core.report import Comparison, Estimate, Measurement, Verdict
from flyweight.report.wording import bytes_text, energy_text, speedup_text, time_text

# A file measured against itself, loaded anew, comes out up to 2 % apart on a machine with other work to do.
SPEED_TOLERANCE = 0.02
FEW_EXAMPLES = 100  # below, one example is a point or more


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
    if budget.latency_s is not None and _is_slower(comparison):
        notes.append(f"{_slowness(comparison)}, which the latency asked for allows")
    elif budget.latency_s is None and speedup.value < 1.0 and not _is_slower(comparison):
        notes.append(
            f"it is as fast as the original as far as could be measured: {speedup_text(speedup)}, "
            f"and {SPEED_TOLERANCE:.0%} are put down to the machine"
        )
    if comparison.examples < FEW_EXAMPLES:
        notes.append(f"quality was measured on {comparison.examples} examples only; each counts much")
    elif budget.quality_drop is not None and drop.value <= budget.quality_drop < drop.high:
        notes.append(
            f"the drop is within what is allowed, but {comparison.examples} examples do not prove it: "
            f"the 95 % interval reaches {drop.high:.4g}"
        )
    return tuple(notes)


def _larger(original: Measurement, compressed: Measurement, budget: Budget) -> list[str]:
    reasons = []
    if compressed.storage_bytes >= original.storage_bytes:
        before, after = original.storage_bytes, compressed.storage_bytes
        reasons.append(f"it is not smaller than the original: {after:,} bytes against {before:,}")
    if budget.storage_bytes is not None and compressed.storage_bytes > budget.storage_bytes:
        took, allowed = (bytes_text(n) for n in (compressed.storage_bytes, budget.storage_bytes))
        over = _over(compressed.storage_bytes, budget.storage_bytes)
        reasons.append(f"it takes {took}, {over} the {allowed} allowed")
    return reasons


def _slower(compressed: Measurement, comparison: Comparison, budget: Budget) -> list[str]:
    if budget.latency_s is not None:
        if compressed.latency.p50_s <= budget.latency_s:
            return []
        took, allowed = time_text(compressed.latency.p50_s), time_text(budget.latency_s)
        over = _over(compressed.latency.p50_s, budget.latency_s)
        return [f"one call takes {took}, {over} the {allowed} allowed"]
    if not _is_slower(comparison):
        return []
    return [f"{_slowness(comparison)}; --max-latency sets a bound of your own instead"]


def is_undecided(speedup: Estimate) -> bool:
    """Whether the interval leaves open if the file is slower, so that timing it again may tell."""
    return speedup.value < 1.0 and speedup.low < 1.0 - SPEED_TOLERANCE <= speedup.high


def _slowness(comparison: Comparison) -> str:
    return f"it is slower than the original: {speedup_text(comparison.speedup)}"


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
        allowed = bytes_text(budget.ram_bytes)
        reasons.append(f"it takes {bytes_text(peak)} of memory at its peak, {allowed} are allowed")
    energy = compressed.energy
    if budget.energy_j is not None and energy is None:
        reasons.append("energy cannot be measured on this machine, so the energy budget is not proven")
    elif budget.energy_j is not None and energy is not None and energy.joules > budget.energy_j:
        took, allowed = energy_text(energy.joules), energy_text(budget.energy_j)
        reasons.append(f"it takes {took} an example, {allowed} are allowed")
    return reasons


def _over(value: int | float, bound: int | float) -> str:
    """``"12.5 % over"``, ``"3.1 times"``."""
    return f"{value / bound - 1:.1%} over" if value < 2 * bound else f"{value / bound:.3g} times"


def shortfall(
    verdict: Verdict, compressed: Measurement, comparison: Comparison, budget: Budget
) -> tuple[float, ...]:
    """A key that orders attempts: fewer broken bounds first, then the smaller and faster one."""
    pace = compressed.latency.p50_s
    drop = max(comparison.quality_drop.value - (budget.quality_drop or 0.0), 0.0)
    return float(len(verdict.reasons)), drop, compressed.storage_bytes * pace
