"""Raw examples to model inputs, declared once and shipped with the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from flyweight.data.declared import declared_steps
from flyweight.data.examples import Splits
from flyweight.data.image_steps import DecodeImage
from flyweight.data.roles import Taken
from flyweight.data.step_json import step_from_json, step_to_json
from flyweight.data.steps import Columns, Rename, Step, as_array
from flyweight.data.text_steps import Tokenize
from flyweight.errors import ArtifactError, InputError

PREPROCESSING_VERSION = 1
MAX_STEPS = 32


@final
@dataclass(frozen=True)
class Preprocessing:
    """Steps, carried out in order on every column (a step that takes only some says so).

    Raises:
        ValueError: There are too many steps, or two tokenizers.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        if len(self.steps) > MAX_STEPS:
            raise ValueError(f"at most {MAX_STEPS} preprocessing steps, got {len(self.steps)}")
        if sum(isinstance(step, Tokenize) for step in self.steps) > 1:
            raise ValueError("preprocessing holds two tokenizers; one artifact ships one")

    @property
    def takes(self) -> Taken:
        """What kind of data it begins with."""
        kinds: Mapping[type[Step], Taken] = {DecodeImage: "images", Tokenize: "texts"}
        return next((kinds[type(step)] for step in self.steps if type(step) in kinds), "numbers")

    def __call__(self, inputs: Mapping[str, np.ndarray | Sequence[Any]]) -> dict[str, np.ndarray]:
        """Model inputs, batch on axis 0.

        What is still of another type after the last step becomes float32; int64 is kept.

        Args:
            inputs: Columns of `Examples.inputs`, or a batch of them.

        Raises:
            InputError: A column or example does not fit, with its name or index; or there is no example.
        """
        if not inputs or not len(next(iter(inputs.values()))):
            raise InputError("there is no example to preprocess")
        _check_kind(self.takes, inputs)
        columns: Columns = inputs
        for step in self.steps:
            columns = step(columns)
        return {name: _model_input(name, values) for name, values in columns.items()}

    def renamed_to(self, name: str) -> Preprocessing:
        """The same with its single output called ``name``, as the model's only input is."""
        return Preprocessing((*self.steps, Rename(name)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; with the files of `write_files`, the inverse of `from_dict`."""
        return {"version": PREPROCESSING_VERSION, "steps": [step_to_json(step) for step in self.steps]}

    @staticmethod
    def from_dict(raw: object, folder: Path) -> Preprocessing:
        """Read what `to_dict` made, with the files `write_files` wrote to ``folder``.

        Raises:
            ArtifactError: It is malformed, of another version, or names an unknown step or a damaged file.
        """
        if not isinstance(raw, dict) or set(raw) != {"version", "steps"}:
            raise ArtifactError("preprocessing must be an object with version and steps")
        if type(raw["version"]) is not int or raw["version"] != PREPROCESSING_VERSION:
            raise ArtifactError(
                f"preprocessing version is {raw['version']!r:.60}; this release reads {PREPROCESSING_VERSION}"
            )
        if not isinstance(raw["steps"], list) or len(raw["steps"]) > MAX_STEPS:
            raise ArtifactError(f"preprocessing steps must be a list of at most {MAX_STEPS}")
        try:
            return Preprocessing(tuple(step_from_json(step, folder) for step in raw["steps"]))
        except ValueError as error:
            raise ArtifactError(f"preprocessing is malformed: {error}") from error

    def write_files(self, folder: Path) -> tuple[str, ...]:
        """Write the files that steps need (a tokenizer) to ``folder``; returns their names."""
        return tuple(step.tokenizer.write(folder) for step in self.steps if isinstance(step, Tokenize))


def _check_kind(takes: Taken, columns: Columns) -> None:
    """Raise InputError where no column is of the kind that the model takes."""
    kinds = {name: _kinds_of(values[0]) for name, values in columns.items()}
    if not any(takes in kind for kind in kinds.values()):
        name, kind = next(iter(kinds.items()))
        shown = f" ({str(columns[name][0])!r:.60})" if kind[0] != "numbers" else ""
        raise InputError(f"the model takes {takes}, and input {name!r} holds {kind[0]}{shown}")


def _kinds_of(example: Any) -> tuple[Taken, ...]:
    """What one example may be; several values are numbers, and may be pixels."""
    if isinstance(example, Path):
        return ("images",)
    if isinstance(example, str):
        return ("texts",)
    return ("numbers",) if np.ndim(example) == 0 else ("numbers", "images")


def _model_input(name: str, values: np.ndarray | Sequence[Any]) -> np.ndarray:
    array = as_array(name, values)
    dtype = np.int64 if array.dtype == np.int64 else np.float32
    # Writable, because torch warns of arrays that are not, such as mapped files.
    return np.require(np.asarray(array), dtype, ["C", "W"])


def build(settings: Mapping[str, object], splits: Splits) -> Preprocessing:
    """The preprocessing that ``settings`` declare for data of the kind of ``splits``; see `declared_steps`.

    Raises:
        InputError: A key is unknown, does not apply to this kind of data, or has a wrong value.
    """
    return Preprocessing(declared_steps(settings, splits.train))
