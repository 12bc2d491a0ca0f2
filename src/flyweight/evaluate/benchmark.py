"""Speed, memory and size of artifacts side by side, without labelled data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from flyweight.core.report import Artifact, Estimate, Latency
from flyweight.data.preprocessing import Preprocessing
from flyweight.data.text_steps import Tokenize
from flyweight.errors import InputError
from flyweight.evaluate.measurement import Conditions
from flyweight.evaluate.memory import peak_rss_bytes
from flyweight.evaluate.timing import interleave, latency, speedup
from flyweight.progress import SILENT, Progress
from flyweight.run.artifact import open_artifact, read_manifest
from flyweight.run.inputs import thread_count
from flyweight.run.manifest import Manifest, TensorSpec

DEFAULT_LENGTH = 128  # of every axis but the batch that may vary


@final
@dataclass(frozen=True, kw_only=True)
class Benchmarked:
    """What was measured of one artifact.

    Attributes:
        path: Its folder.
        storage_bytes: All files the device needs.
        latency: Interleaved with the others'.
        peak_rss_bytes: See `flyweight.evaluate.memory`.
        speedup: The last artifact's time over this one's, above 1 is faster; None for the last one itself.
    """

    path: Path
    storage_bytes: int
    latency: Latency
    peak_rss_bytes: int | None
    speedup: Estimate | None


def benchmark(
    paths: Sequence[Path],
    conditions: Conditions,
    *,
    length: int = DEFAULT_LENGTH,
    progress: Progress = SILENT,
) -> tuple[Benchmarked, ...]:
    """One entry an artifact, in their order, all timed in one loop on inputs made up from their manifests.

    Args:
        paths: Folders of artifacts; the last is what the others are compared with.
        conditions: Runtime, threads, batch size and time.
        length: Size of axes that vary, such as the tokens of a text; at most what the tokenizer keeps.
        progress: Told of each stage.

    Raises:
        ArtifactError: One is damaged.
        InputError: One is missing, or does not run on inputs of these sizes.
    """
    artifacts = [open_artifact(path) for path in paths]
    inputs = [_inputs(artifact, conditions.batch_size, length) for artifact in artifacts]
    with progress.stage(f"Timing for {conditions.seconds:g} s"):
        samples = interleave(
            [conditions.loading(artifact, given) for artifact, given in zip(artifacts, inputs, strict=True)],
            seconds=conditions.seconds,
        )
    with progress.stage("Measuring memory"):
        peaks = [
            peak_rss_bytes(artifact.path, conditions.runtime, given, threads=conditions.threads)
            for artifact, given in zip(artifacts, inputs, strict=True)
        ]
    return tuple(
        Benchmarked(
            path=path,
            storage_bytes=artifact.nbytes,
            latency=latency(taken, given, threads=thread_count(conditions.threads)),
            peak_rss_bytes=peak,
            speedup=None if path is paths[-1] else speedup(samples[-1], taken),
        )
        for path, artifact, given, taken, peak in zip(paths, artifacts, inputs, samples, peaks, strict=True)
    )


def _inputs(artifact: Artifact, batch_size: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    manifest = read_manifest(artifact.path)
    length = int(min(length, _longest(manifest, artifact.path)))
    return {spec.name: _input(spec, batch_size, length, generator) for spec in manifest.inputs}


def _longest(manifest: Manifest, folder: Path) -> int | float:
    """Tokens that the artifact keeps of one text; infinite where it has no tokenizer."""
    if manifest.preprocessing is None:
        return math.inf
    steps = Preprocessing.from_dict(manifest.preprocessing, folder).steps
    return next((step.max_length for step in steps if isinstance(step, Tokenize)), math.inf)


def _input(spec: TensorSpec, batch_size: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Standard normal numbers, or ones: a token that every vocabulary has, and a mask that masks nothing."""
    if not spec.shape or (isinstance(spec.shape[0], int) and spec.shape[0] != batch_size):
        raise InputError(f"input {spec} of the model takes no batch of {batch_size}")
    shape = (batch_size, *(size if isinstance(size, int) else length for size in spec.shape[1:]))
    dtype = np.dtype(spec.dtype)
    return generator.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
