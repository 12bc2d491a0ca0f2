"""Runs a model on the evaluation data, and sets two models side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np

from flyweight.core.protocols import Task
from flyweight.core.report import Comparison
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.evaluate.slices import slices
from flyweight.evaluate.statistics import agreement, paired_bootstrap, paired_test
from flyweight.evaluate.timing import speedup
from flyweight.progress import SILENT, Progress
from flyweight.run.manifest import Manifest
from flyweight.tasks.scores import Scores

Arrays: TypeAlias = Mapping[str, np.ndarray]  # input name to (batch, ...)
Session: TypeAlias = Callable[[Arrays], Sequence[np.ndarray]]
Preprocess: TypeAlias = Callable[[Mapping[str, Any]], Arrays]  # columns of Examples.inputs to model inputs

EXAMPLES_A_CALL = 32


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """One side of a comparison.

    Attributes:
        scores: On the evaluation split.
        samples_s: Seconds of each timed round, one list a session, interleaved with the other side's.
        storage_bytes: All files the device needs.
    """

    scores: Scores
    samples_s: Sequence[Sequence[float]]
    storage_bytes: int

    def __post_init__(self) -> None:
        if self.storage_bytes <= 0:
            raise ValueError(f"storage_bytes must be above 0, got {self.storage_bytes}")


def examples_a_call(manifest: Manifest) -> int:
    """Examples that are given at once to a model whose quality is measured: what `flyweight run` gives it."""
    return 1 if manifest.examples_interact else EXAMPLES_A_CALL


def order_by_length(examples: Examples) -> np.ndarray:
    """Indices of the examples by the characters of all their texts; equal ones keep their order."""
    lengths = np.zeros(len(examples), dtype=np.int64)
    for values in examples.inputs.values():
        if all(isinstance(value, str) for value in values):
            lengths += np.array([len(value) for value in values], dtype=np.int64)
    return np.argsort(lengths, kind="stable")


def evaluate(
    session: Session,
    preprocessing: Preprocess,
    task: Task,
    splits: Splits,
    *,
    batch_size: int = EXAMPLES_A_CALL,
    progress: Progress = SILENT,
) -> Scores:
    """Scores of the model on the evaluation split.

    Texts go in order of length, as each is padded to the longest of its batch.

    Raises:
        InputError: The data do not fit the task or the model.
        ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    queries = task.queries(splits)
    order = order_by_length(queries)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    outputs = [
        _first_output(session, preprocessing(queries.take(indices).inputs))
        for indices in progress.track(batches, f"Evaluating {len(queries)} examples")
    ]
    in_order = _joined(outputs)
    if len(in_order) != len(order):
        raise InputError(
            f"the model gave {len(in_order)} outputs for {len(order)} examples: axis 0 must be the batch"
        )
    return task.score(in_order[np.argsort(order)], splits)


def compare(
    task: Task, original: Evaluated, compressed: Evaluated, examples: Examples, *, seed: int = 0
) -> Comparison:
    """The compressed model against the original.

    Args:
        task: Gives the metric.
        original: What it was.
        compressed: What it became, on the same examples and timed in the same rounds.
        examples: The evaluation split, for the slices.
        seed: Of the bootstrap intervals.

    Raises:
        ValueError: The two sides are not of the same examples or rounds.
    """
    before, after = original.scores, compressed.scores
    return Comparison(
        size_ratio=original.storage_bytes / compressed.storage_bytes,
        speedup=speedup(original.samples_s, compressed.samples_s),
        quality_drop=paired_bootstrap(task, before, after, seed=seed),
        test=paired_test(before, after),
        agreement=agreement(before, after),
        slices=slices(task, before, after, examples),
        examples=len(before),
    )


def _first_output(session: Session, inputs: Arrays) -> np.ndarray:
    outputs = session(inputs)
    if not outputs:
        raise InputError("the model has no output")
    return np.asarray(outputs[0])


def _joined(outputs: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {output.shape[1:] if output.ndim else None for output in outputs}
    if len(shapes) > 1 or None in shapes:
        listed = ", ".join(sorted(str(output.shape) for output in outputs)[:3])
        raise InputError(
            f"the model's first output must be (batch, ...) and of one shape for all batches, got {listed}: "
            "pool what varies in length inside the model"
        )
    return np.concatenate(outputs)
