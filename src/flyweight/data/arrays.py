"""Arrays on disk: .npz, .npy, or a folder of them.

Names say what an array is: ``x_train``, ``y_train``, ``x_test``; ``train_images``, ``train_labels``; or,
unsplit, ``x`` and ``y``, ``inputs`` and ``targets`` (``labels``). Where no input has a usual name, all
other arrays are inputs, unless the settings choose. An array called ``classes`` holds class names. In a
folder, a file's name is an array's name (.npy), or the part its arrays belong to (``train.npz``).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.data.splits import is_part, select_parts
from flyweight.data.targets import Labelled
from flyweight.errors import InputError
from flyweight.settings import DataSettings

SUFFIXES = (".npz", ".npy")
INPUT_NAMES = ("x", "inputs", "input", "images", "image", "features", "data")
TARGET_NAMES = ("y", "targets", "target", "labels", "label")
CLASSES_NAME = "classes"

_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_WHOLE = "train"  # what data that are not split are called until they are


def read_arrays(path: Path, settings: DataSettings) -> tuple[dict[str, Labelled], tuple[str, ...]]:
    """The parts that ``path`` holds, and class names where it names them.

    Raises:
        InputError: A file is damaged or holds Python objects, or a chosen name is missing.
    """
    arrays = _read_folder(path) if path.is_dir() else _read_file(path)
    classes = tuple(str(name) for name in arrays.pop(CLASSES_NAME, np.zeros(0)))
    chosen = (*settings.inputs, *settings.slices, *([settings.target] if settings.target else []))
    parts = select_parts(_by_part(arrays, chosen))
    return {use: _labelled(part, settings, path) for use, part in parts.items()}, classes


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        read = _read_file(path)
        if path.suffix.lower() == ".npy":
            arrays[path.stem] = next(iter(read.values()))
        else:
            arrays |= {
                f"{name}_{path.stem}" if is_part(path.stem) else name: array for name, array in read.items()
            }
    return arrays


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """Arrays of one file by name; the one of an .npy is called ``x``."""
    try:
        arrays = _loaded(path)
    except _UNREADABLE as error:
        objects = "pickle" in str(error) or "Python objects" in str(error)
        reason = "it holds Python objects; save plain arrays" if objects else f"it is damaged ({error})"
        raise InputError(f"cannot read the arrays in {path}: {reason}") from error
    for name, array in arrays.items():
        if array.ndim == 0:
            raise InputError(f"array {name!r} in {path} is a single value; examples must be on axis 0")
    return arrays


def _loaded(path: Path) -> dict[str, np.ndarray]:
    if path.suffix.lower() == ".npy":
        return {INPUT_NAMES[0]: np.load(path, mmap_mode="r", allow_pickle=False)}
    with path.open("rb") as file:  # opened here, because np.load leaves a damaged file open
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is an .npy file under another name")
        return {name: archive[name] for name in archive.files}


def _by_part(arrays: Mapping[str, np.ndarray], chosen: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by part, then by name without it; those that name no part are left out if others do.

    A name that is chosen as it stands is not taken apart: ``valid_mask`` may be an input.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, part = (key, "") if key in chosen else _name_and_part(key)
        parts.setdefault(part, {})[name] = array
    whole = parts.pop("", {})
    return parts or {_WHOLE: whole}


def _name_and_part(key: str) -> tuple[str, str]:
    """``("x", "train")`` of ``x_train`` and ``train_x``; ``("x", "")`` of ``x``."""
    if is_part(key):
        return INPUT_NAMES[0], key
    head, _, last = key.rpartition("_")
    if head and is_part(last):
        return head, last
    first, _, tail = key.partition("_")
    return (tail, first) if tail and is_part(first) else (key, "")


def _labelled(arrays: Mapping[str, np.ndarray], settings: DataSettings, path: Path) -> Labelled:
    for name in (*settings.inputs, *settings.slices, *([settings.target] if settings.target else [])):
        if name not in arrays:
            raise InputError(f"{path} holds no array {name!r}; it holds {', '.join(arrays) or 'nothing'}")
    target = settings.target or next((name for name in TARGET_NAMES if name in _lowered(arrays)), None)
    label = None if target is None else _lowered(arrays)[target.casefold()]
    inputs = settings.inputs or _input_names(arrays, label, settings.slices)
    if not inputs:
        raise InputError(f"{path} holds no input array; it holds {', '.join(arrays) or 'nothing'}")
    return Labelled(
        {name: _column(arrays[name]) for name in inputs},
        None if label is None else np.asarray(arrays[label]),
        {name: arrays[name] for name in settings.slices},
    )


def _lowered(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name.casefold(): name for name in arrays}


def _input_names(
    arrays: Mapping[str, np.ndarray], label: str | None, slices: Sequence[str]
) -> tuple[str, ...]:
    """The array of a usual name, else every array with another purpose than none."""
    usual = next((name for name in INPUT_NAMES if name in _lowered(arrays)), None)
    if usual is not None:
        return (_lowered(arrays)[usual],)
    return tuple(name for name in arrays if name != label and name not in slices)


def _column(array: np.ndarray) -> np.ndarray | list[Any]:
    return array.tolist() if array.dtype.kind == "U" else array
