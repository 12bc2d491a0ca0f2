"""Answers of an artifact to new examples: its preprocessing, model file and post-processing. No PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.data.examples import FILE_COLUMN, Examples
from flyweight.data.preprocessing import Preprocessing
from flyweight.errors import ArtifactError, InputError, UnsupportedError
from flyweight.progress import SILENT, Progress
from flyweight.run.answers import check_answers_path, write_answers
from flyweight.run.artifact import open_artifact, read_manifest
from flyweight.run.manifest import Manifest
from flyweight.run.open import open_runtime
from flyweight.tasks.open import open_task
from flyweight.tasks.similarity import Similarity

__all__ = ["check_answers_path", "predict", "write_answers"]

Column = np.ndarray | Sequence[Any]
Arrays = Mapping[str, np.ndarray]
Answer = Callable[[np.ndarray], Mapping[str, Sequence[object]]]


def predict(
    artifact_path: str | Path,
    inputs: Examples,
    *,
    runtime: str = "onnxruntime",
    threads: int = 0,
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> Mapping[str, Sequence[object]]:
    """Named columns of answers, one value an example, as the artifact's task gives them.

    Where the examples are files, the first column is ``file``. Two input columns of a similarity task are
    pairs, answered by their cosine in a column ``similarity``; one column is answered by embeddings.

    The file of a ``file.py:metric`` task is never run; its answers are the numbers of the first output, as
    columns ``output_0``, ``output_1``, ... (``output`` if there is one).

    Args:
        inputs: Raw examples; their targets are not looked at.
        runtime: A name of the catalog.
        threads: Threads of the runtime; 0 is one for each core this process may use.
        batch_size: Examples in one call of the model, unless its examples interact: then 1.

    Raises:
        ArtifactError: The artifact is damaged, or its model does not give one row an example.
        InputError: There is no such artifact, there are no examples, or they are not what the model takes.
        UnsupportedError: The runtime does not run the artifact's format.
        ValueError: The runtime is unknown, or ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(inputs) == 0:
        raise InputError("there are no examples to answer: the input is empty")
    artifact, manifest = open_artifact(artifact_path), read_manifest(artifact_path)
    files = _files(inputs)
    inputs, answer = _post_processing(manifest, inputs)
    prepare = _preprocessing(manifest, artifact.path)
    session = open_runtime(runtime, manifest.format).load(artifact, threads)
    names = [spec.name for spec in manifest.inputs]
    if manifest.examples_interact:
        batch_size = 1
    outputs = [
        _first_output(session(_only(names, prepare(columns))), columns)
        for columns in progress.track(list(_batches(inputs, batch_size)), "answers")
    ]
    return {**files, **answer(_joined(outputs))}


def _files(inputs: Examples) -> Mapping[str, Sequence[object]]:
    files = inputs.columns.get(FILE_COLUMN)
    return {} if files is None else {FILE_COLUMN: files.tolist()}


def _preprocessing(manifest: Manifest, folder: Path) -> Callable[[Mapping[str, Column]], Arrays]:
    if manifest.preprocessing is None:
        return _as_arrays
    return Preprocessing.from_dict(manifest.preprocessing, folder)


def _as_arrays(columns: Mapping[str, Column]) -> Arrays:
    try:
        return {name: np.asarray(values) for name, values in columns.items()}
    except ValueError as error:
        raise InputError(f"the examples are no arrays of one shape: {error}") from error


def _post_processing(manifest: Manifest, inputs: Examples) -> tuple[Examples, Answer]:
    """What the model is asked, and what makes answers of its outputs."""
    if ":" in manifest.task:  # a file of whoever made the artifact: not ours to run
        return inputs, _raw
    task = open_task(manifest.task, manifest.task_settings)
    if isinstance(task, Similarity) and len(inputs.inputs) == 2:
        return task.pair_queries(inputs), task.pair_answers
    return inputs, lambda outputs: task.answers(outputs, manifest.classes)


def _raw(outputs: np.ndarray) -> Mapping[str, Sequence[object]]:
    columns = outputs.reshape(len(outputs), -1).T.tolist()
    return {"output": columns[0]} if len(columns) == 1 else {f"output_{i}": c for i, c in enumerate(columns)}


def _batches(inputs: Examples, size: int) -> Iterable[Mapping[str, Column]]:
    for start in range(0, len(inputs), size):
        yield {name: values[start : start + size] for name, values in inputs.inputs.items()}


def _only(names: Sequence[str], arrays: Arrays) -> Arrays:
    """What the model takes of what the preprocessing makes; the session says what is missing."""
    return {name: arrays[name] for name in names if name in arrays}


def _first_output(outputs: Sequence[np.ndarray], columns: Mapping[str, Column]) -> np.ndarray:
    examples = len(next(iter(columns.values())))
    if outputs[0].shape[:1] != (examples,):
        raise ArtifactError(
            f"the model's first output has shape {outputs[0].shape} for {examples} examples, not one row each"
        )
    return outputs[0]


def _joined(outputs: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {output.shape[1:] for output in outputs}
    if len(shapes) > 1:
        raise UnsupportedError(f"the model's first output differs in shape between batches: {sorted(shapes)}")
    return np.concatenate(outputs)
