"""Measures two artifacts side by side, original and compressed, in the same loop and on the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np

from flyweight.core.protocols import Task
from flyweight.core.report import Artifact, Comparison, Energy, Measurement
from flyweight.data.examples import Splits
from flyweight.evaluate.energy import estimate_energy, measure_energy
from flyweight.evaluate.evaluate import (
    Arrays,
    Evaluated,
    Preprocess,
    Session,
    compare,
    evaluate,
    examples_a_call,
    order_by_length,
)
from flyweight.evaluate.guarantee import is_undecided
from flyweight.evaluate.memory import peak_rss_bytes
from flyweight.evaluate.statistics import bootstrap, expected_calibration_error
from flyweight.evaluate.timing import interleave, latency, speedup
from flyweight.progress import SILENT, Progress
from flyweight.run.artifact import read_manifest
from flyweight.run.inputs import thread_count
from flyweight.run.open import open_runtime
from flyweight.tasks.scores import Scores

ENERGY_SECONDS = 1.0
TIMED_AGAIN = 2  # three times the sessions: intervals of about half the width


@final
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which measurements are taken.

    Attributes:
        runtime: Name in the catalog.
        threads: Of the runtime; 0 is as many as the machine has cores.
        batch_size: Examples in one timed call.
        seconds: Given to the latency comparison.
    """

    runtime: str
    threads: int
    batch_size: int
    seconds: float

    def load(self, artifact: Artifact) -> Session:
        """The artifact in the runtime; raises UnsupportedError if that does not run its format."""
        return open_runtime(self.runtime, artifact.format).load(artifact, self.threads)

    def loading(self, artifact: Artifact, inputs: Arrays) -> Callable[[], Callable[[], object]]:
        """Loads the artifact anew, and gives one call of it on ``inputs``."""
        return lambda: partial(self.load(artifact), inputs)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """An artifact being measured.

    Attributes:
        artifact: Its files.
        scores: On the evaluation split.
        macs: Multiply-accumulates of one example by the bits of the wider factor.
    """

    artifact: Artifact
    scores: Scores
    macs: Mapping[int, int]


def scored(
    artifact: Artifact,
    conditions: Conditions,
    preprocessing: Preprocess,
    task: Task,
    splits: Splits,
    *,
    progress: Progress = SILENT,
) -> Scores:
    """Scores on the evaluation split, given as many examples a call as `flyweight run` gives."""
    batch_size = examples_a_call(read_manifest(artifact.path))
    session = conditions.load(artifact)
    return evaluate(session, preprocessing, task, splits, batch_size=batch_size, progress=progress)


def timed_inputs(preprocessing: Preprocess, task: Task, splits: Splits, batch_size: int) -> Arrays:
    """The inputs of one timed call: examples of middling length, as texts differ in it."""
    queries = task.queries(splits)
    order = order_by_length(queries)
    first = max((len(order) - batch_size) // 2, 0)
    chosen = np.resize(order[first : first + batch_size], batch_size)
    return preprocessing(queries.take(chosen).inputs)


def measure(
    original: Subject,
    compressed: Subject,
    task: Task,
    splits: Splits,
    *,
    inputs: Arrays,
    conditions: Conditions,
) -> tuple[Measurement, Measurement, Comparison]:
    """(original, compressed, comparison), measured now.

    Args:
        original: What it was.
        compressed: What it became.
        task: Gives the metric.
        splits: The evaluation split is what both were scored on.
        inputs: Of one timed call.
        conditions: See `Conditions`.
    """
    loads = [conditions.loading(subject.artifact, inputs) for subject in (original, compressed)]
    samples = _timed(loads, conditions.seconds)
    sides = [
        Evaluated(scores=subject.scores, samples_s=taken, storage_bytes=subject.artifact.nbytes)
        for subject, taken in zip((original, compressed), samples, strict=True)
    ]
    comparison = compare(task, sides[0], sides[1], splits.evaluation)
    before, after = (
        _measurement(subject, taken, task, inputs, conditions)
        for subject, taken in zip((original, compressed), samples, strict=True)
    )
    return before, after, comparison


def _timed(loads: Sequence[Callable[[], Callable[[], object]]], seconds: float) -> list[list[list[float]]]:
    """Samples of original and compressed, taken again while they leave open which is the slower."""
    samples = interleave(loads, seconds=seconds)
    for _ in range(TIMED_AGAIN):
        if not is_undecided(speedup(*samples)):
            break
        samples = [
            before + more for before, more in zip(samples, interleave(loads, seconds=seconds), strict=True)
        ]
    return samples


def _measurement(
    subject: Subject,
    samples_s: Sequence[Sequence[float]],
    task: Task,
    inputs: Arrays,
    conditions: Conditions,
) -> Measurement:
    artifact = subject.artifact
    manifest = read_manifest(artifact.path)
    energy = measure_energy(
        conditions.loading(artifact, inputs)(), examples=conditions.batch_size, seconds=ENERGY_SECONDS
    )
    return Measurement(
        storage_bytes=artifact.nbytes,
        files=dict(artifact.files),
        parameters=manifest.parameters,
        macs=manifest.macs,
        latency=latency(samples_s, inputs, threads=thread_count(conditions.threads)),
        peak_rss_bytes=peak_rss_bytes(artifact.path, conditions.runtime, inputs, threads=conditions.threads),
        energy=energy,
        energy_estimate=None if energy else _estimated_energy(subject, conditions.batch_size),
        quality=bootstrap(task, subject.scores),
        calibration_error=expected_calibration_error(subject.scores),
    )


def _estimated_energy(subject: Subject, batch_size: int) -> Energy:
    weights = subject.artifact.files[subject.artifact.model_file] / batch_size
    return estimate_energy(subject.macs, weights)
