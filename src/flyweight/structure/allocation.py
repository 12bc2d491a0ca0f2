"""How many parts each group gives up: the same share of all, or what costs least for the work it saves.

Parts go in the order of their scores, the least first, so that a count for each group says which. No tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from flyweight.core.groups import without_parts
from flyweight.core.layer import GroupProfile, ModelProfile


@final
@dataclass(frozen=True, kw_only=True)
class Widths:
    """Which counts of parts are taken.

    Attributes:
        multiple_of: What is left of a group is a multiple of it, where there were as many parts.
        least: Share of a group that is left in any case.
    """

    multiple_of: int = 1
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.multiple_of < 1:
            raise ValueError(f"multiple_of must be at least 1, got {self.multiple_of}")
        if not 0 <= self.least <= 1:
            raise ValueError(f"least must be in 0..1, got {self.least}")

    def nearest(self, parts: int, wanted: float) -> int:
        """The allowed count nearest to ``wanted``, of a group of so many parts."""
        return min(self.allowed(parts), key=lambda count: (abs(count - wanted), -count))

    def below(self, parts: int, count: int) -> int | None:
        """The next allowed count below one; None where there is none."""
        return max((lower for lower in self.allowed(parts) if lower < count), default=None)

    def allowed(self, parts: int) -> Sequence[int]:
        """Counts that may be left, all of them included."""
        step = self.multiple_of if parts >= self.multiple_of else parts
        least = max(1, self.least * parts)
        return [count for count in range(step, parts, step) if count >= least] + [parts]


def same_share(groups: Sequence[GroupProfile], ratio: float, widths: Widths) -> dict[str, int]:
    """Group to the parts that are removed, a share ``ratio`` of each.

    Raises:
        ValueError: The ratio is not in 0..1, 1 excluded.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be at least 0 and below 1, got {ratio}")
    return {g.name: g.parts - widths.nearest(g.parts, g.parts * (1 - ratio)) for g in groups}


def cheapest(
    profile: ModelProfile, scores: Mapping[str, Sequence[float]], share: float, widths: Widths
) -> dict[str, int]:
    """Group to the parts that are removed so that no more than a share of the multiply-accumulates is left.

    Step by step, the group goes on to its next allowed count whose parts have the least score for the work
    that saves now.

    Args:
        profile: With groups.
        scores: Group to the scores of its parts, comparable between groups; others stay.
        share: Of the multiply-accumulates of ``profile``.
        widths: Counts that are taken.

    Raises:
        ValueError: The share is not in 0..1, 0 excluded, or cannot be reached.
    """
    if not 0 < share <= 1:
        raise ValueError(f"macs must be above 0 and at most 1, got {share}")
    groups = {group.name: group for group in profile.groups if group.name in scores}
    ordered = {name: sorted(scores[name]) for name in groups}
    removed = dict.fromkeys(groups, 0)
    now = profile
    while now.macs > share * profile.macs:
        best: tuple[float, str, int, ModelProfile] | None = None
        for name, count in _steps(groups, removed, widths):
            after = without_parts(profile, {**removed, name: count})
            lost = sum(ordered[name][removed[name] : count])
            price = lost / max(now.macs - after.macs, 1)
            if best is None or price < best[0]:
                best = price, name, count, after
        if best is None:
            left = now.macs / profile.macs
            raise ValueError(f"macs={share:g} cannot be reached: {left:.3g} is left without all that can go")
        _, name, removed[name], now = best
    return removed


def _steps(
    groups: Mapping[str, GroupProfile], removed: Mapping[str, int], widths: Widths
) -> Iterator[tuple[str, int]]:
    """Group and the parts that are removed from it one step further."""
    for name, group in groups.items():
        fewer = widths.below(group.parts, group.parts - removed[name])
        if fewer is not None:
            yield name, group.parts - fewer
