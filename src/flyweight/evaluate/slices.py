"""Quality before and after on parts of the evaluation data: each class, each value of the further columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from flyweight.core.protocols import Task
from flyweight.core.report import Slice
from flyweight.data.examples import Examples
from flyweight.tasks.scores import Scores

MAX_DISTINCT_NUMBERS = 20


def slices(
    task: Task, before: Scores, after: Scores, examples: Examples, *, minimum: int = 20
) -> tuple[Slice, ...]:
    """The metric on each slice, worst drop first, then by name.

    Slices are ``"class cat"`` where answers are right or wrong, and ``"column = value"``; a column of more
    than 20 distinct numbers is cut at its quartiles. Slices of fewer than ``minimum`` examples are left out:
    one answer of 20 is 5 points already.

    Args:
        task: Gives the metric.
        before: Scores of the original.
        after: Scores of the compressed model.
        examples: What both were evaluated on.
        minimum: Examples a slice has to have.

    Raises:
        ValueError: The three are not of the same length, or ``minimum`` is below 1.
    """
    if not len(before) == len(after) == len(examples):
        raise ValueError(
            f"scores and examples must be of one length, got {len(before)}, {len(after)}, {len(examples)}"
        )
    if minimum < 1:
        raise ValueError(f"minimum must be at least 1, got {minimum}")
    found = [
        Slice(
            name=name,
            examples=len(indices),
            original=task.metric(before.take(indices)),
            compressed=task.metric(after.take(indices)),
        )
        for name, indices in _parts(before, examples)
        if len(indices) >= minimum
    ]
    return tuple(sorted(found, key=lambda s: (-s.drop, s.name)))


def _parts(scores: Scores, examples: Examples) -> Iterator[tuple[str, np.ndarray]]:
    """Name and (n,) indices of each slice."""
    if scores.correct is not None and scores.targets.ndim == 1:
        for label, indices in _groups(scores.targets):
            named = examples.classes[int(label)] if 0 <= int(label) < len(examples.classes) else label
            yield f"class {named}", indices
    for column, values in examples.columns.items():
        many_numbers = values.dtype.kind in "iuf" and len(np.unique(values)) > MAX_DISTINCT_NUMBERS
        groups = _quarters(values) if many_numbers else _groups(values)
        for value, indices in groups:
            yield f"{column} = {value}", indices


def _groups(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each distinct value as text, and where it is."""
    texts, inverse = np.unique(values.astype(str), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(np.bincount(inverse, minlength=len(texts)))
    for text, indices in zip(texts, np.split(order, ends[:-1]), strict=True):
        yield str(text), indices


def _quarters(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Ranges with a quarter of the examples each, ties aside; NaN and infinity are a part of their own."""
    finite = np.isfinite(values)
    yield "not finite", np.flatnonzero(~finite)
    edges = np.unique(np.quantile(values[finite], [0.0, 0.25, 0.5, 0.75, 1.0]))
    quarter = np.searchsorted(edges[1:-1], values, side="left")
    for i, (low, high) in enumerate(pairwise(edges)):
        yield f"{low:.4g} to {high:.4g}", np.flatnonzero((quarter == i) & finite)
