"""Calibration inputs as a model takes them, without targets or preprocessing: arrays by names of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flyweight.errors import InputError
from flyweight.user_code import is_spec, user_object

ONLY = "x"  # what a single array is called that has no name of its own


def read_root_inputs(source: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Input name to (examples, ...); floats as float32.

    Args:
        source: An .npz file, whose arrays have the names of inputs, an .npy file for a model with one input,
            or ``file.py:loader``, a function that returns such a dict of arrays.
        names: Of the model's inputs, those without a default first; a single array is the first.

    Raises:
        InputError: There is no such file or function, or an array is none of the inputs, or their lengths
            differ.
    """
    raw = _called(source) if is_spec(source) else _read(Path(source))
    if len(raw) == 1 and not set(raw) & set(names):
        raw = {names[0]: next(iter(raw.values()))}
    arrays = {name: np.asarray(array) for name, array in raw.items()}
    unknown = next((name for name in arrays if name not in names), None)
    if unknown is not None:
        raise InputError(f"{source} holds {unknown!r}; the model's inputs are {', '.join(names)}")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.ndim == 0 or len(array) == 0:
            raise InputError(f"{name!r} of {source} must hold numbers, examples on axis 0")
    if len({len(array) for array in arrays.values()}) != 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise InputError(f"{source} holds different numbers of examples: {lengths or 'none'}")
    return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def _read(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"there is no file {path}; --data takes .npz, .npy or file.py:loader")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {ONLY: loaded}
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read the arrays in {path}: {error}; save plain arrays") from error


def _called(spec: str) -> Mapping[str, np.ndarray]:
    with user_object(spec) as function:
        if not callable(function):
            raise InputError(f"{spec} is no function; name one that returns a dict of arrays")
        returned = function()
    if not isinstance(returned, Mapping) or not all(isinstance(name, str) for name in returned):
        raise InputError(
            f"{spec} returned a {type(returned).__name__}; return a dict of arrays by input name"
        )
    return returned
