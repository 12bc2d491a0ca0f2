"""Train, calibration and evaluation data kept apart: split by seed, by class, with equal rows on one side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.data.leaks import row_digests
from flyweight.errors import InputError
from flyweight.settings import DataSettings

# Names of parts in files, folders and loaders, by what they are used for; the first that is present is used.
PART_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "calibration": ("calibration", "calib"),
    "evaluation": ("evaluation", "eval", "test", "testing", "validation", "valid", "val", "dev"),
}

Part = TypeVar("Part")

_SPLIT_STREAM, _CALIBRATION_STREAM, _EVALUATION_STREAM = range(3)  # one random stream a purpose


def is_part(name: str) -> bool:
    """Whether ``name`` is the name of a part of the data."""
    return any(name.casefold() in names for names in PART_NAMES.values())


def select_parts(named: Mapping[str, Part]) -> dict[str, Part]:
    """Parts under any of their names as ``train``, ``calibration`` and ``evaluation``, as far as present.

    Where evaluation data come twice (test and validation), the name earlier in `PART_NAMES` is used.
    """
    lowered = {name.casefold(): part for name, part in named.items()}
    found = {
        use: next((lowered[name] for name in names if name in lowered), None)
        for use, names in PART_NAMES.items()
    }
    return {use: part for use, part in found.items() if part is not None}


def assemble(parts: Mapping[str, Examples], settings: DataSettings, *, whole: bool = False) -> Splits:
    """Splits from what the source holds: missing ones are drawn, sizes are limited.

    Args:
        parts: Keys ``train``, ``calibration``, ``evaluation`` as far as the source has them; a single
            ``train`` or ``evaluation`` is split in two.
        settings: Sizes, fraction and seed.
        whole: Evaluate on all of a single part, which then stands in for the others, instead of splitting it.

    Raises:
        InputError: There is nothing to split, or too little.
    """
    if "train" in parts and "evaluation" in parts:
        train, evaluation = parts["train"], parts["evaluation"]
        splits = Splits(train, parts.get("calibration", train), evaluation)
    elif "calibration" in parts and "evaluation" in parts:
        splits = Splits(parts["calibration"], parts["calibration"], parts["evaluation"])
    elif whole and len(parts) == 1:
        (only,) = parts.values()
        splits = Splits(only, only, only)
    elif "train" in parts or "evaluation" in parts:
        drawn = split(parts["train"] if "train" in parts else parts["evaluation"], settings)
        splits = replace(drawn, calibration=parts.get("calibration", drawn.train))
    else:
        raise InputError("the data hold neither training nor evaluation examples")
    return with_sizes(splits, settings)


def split(examples: Examples, settings: DataSettings) -> Splits:
    """Train and evaluation parts of unsplit data; calibration is drawn from train.

    Each class is split in the same proportion. Examples with equal inputs stay together, so the evaluation
    part is as close to ``evaluation_fraction`` as their groups allow; without repeats it is exact.

    Raises:
        InputError: There are fewer than two different examples.
    """
    groups = (
        np.unique(row_digests(examples), return_inverse=True)[1] if len(examples) else np.zeros(0, np.int64)
    )
    if not groups.size or groups.max() == 0:
        raise InputError(
            f"the data hold {len(examples)} example(s), all alike; a split needs two different ones"
        )
    order = _stratified_groups(
        groups, _strata(examples), np.random.default_rng([settings.seed, _SPLIT_STREAM])
    )
    sizes = np.bincount(groups)[order]
    wanted = round(settings.evaluation_fraction * len(examples))
    taken = int(np.clip(np.searchsorted(np.cumsum(sizes), wanted) + 1, 1, len(order) - 1))
    held_out = np.isin(groups, order[:taken])
    train = examples.take(np.flatnonzero(~held_out))
    drawn = Splits(train, train, examples.take(np.flatnonzero(held_out)))
    return replace(
        drawn, calibration=_sample(train, settings.calibration_size, [settings.seed, _CALIBRATION_STREAM])
    )


def with_sizes(splits: Splits, settings: DataSettings) -> Splits:
    """Calibration and evaluation limited to the sizes of ``settings``, by class where there are classes."""
    evaluation = splits.evaluation
    if settings.evaluation_size is not None:
        evaluation = _sample(evaluation, settings.evaluation_size, [settings.seed, _EVALUATION_STREAM])
    calibration = _sample(splits.calibration, settings.calibration_size, [settings.seed, _CALIBRATION_STREAM])
    return Splits(splits.train, calibration, evaluation)


def _sample(examples: Examples, size: int, seed: list[int]) -> Examples:
    """At most ``size`` examples, stratified, in their order."""
    if len(examples) <= size:
        return examples
    order = _stratified_groups(np.arange(len(examples)), _strata(examples), np.random.default_rng(seed))
    return examples.take(np.sort(order[:size]))


def _strata(examples: Examples) -> np.ndarray:
    """(examples,) class index, or 0 where targets are not classes."""
    targets = examples.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iu":
        return np.zeros(len(examples), dtype=np.int64)
    return targets.astype(np.int64)


def _stratified_groups(groups: np.ndarray, strata: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Group ids in an order of which every prefix holds all strata in proportion.

    A group's place is the fraction of its stratum's examples that come before its middle, in a random
    order of the stratum; a group belongs to the stratum of its first example.

    Where groups are single examples, a prefix is off by at most ``((1 - p) + p * (k - 1)) / 2`` examples in a
    stratum of share p among k: below 1 where strata are alike.

    Args:
        groups: (examples,) ids 0..n-1, each present.
        strata: (examples,) int64.
        generator: Source of the order.
    """
    first = np.unique(groups, return_index=True)[1]
    sizes, stratum = np.bincount(groups), np.unique(strata[first], return_inverse=True)[1]
    shuffled = np.lexsort((generator.permutation(len(first)), stratum))
    before = np.cumsum(sizes[shuffled]) - sizes[shuffled]
    totals = np.bincount(stratum, weights=sizes)
    starts = np.cumsum(totals) - totals
    middle = before + sizes[shuffled] / 2 - starts[stratum[shuffled]]
    ties = generator.permutation(len(first))
    return shuffled[np.lexsort((ties, middle / totals[stratum[shuffled]]))]
