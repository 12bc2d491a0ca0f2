"""Any supported data to splits, or to examples without targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from flyweight.data import arrays, images, tables, text
from flyweight.data.checks import check_examples, check_splits
from flyweight.data.columns import examples_of
from flyweight.data.examples import FILE_COLUMN, Examples, Splits
from flyweight.data.python import read_python
from flyweight.data.roles import NOTHING, Expected, Taken
from flyweight.data.splits import assemble, is_part, select_parts
from flyweight.data.tables import Table
from flyweight.data.targets import Labelled, encode
from flyweight.errors import InputError
from flyweight.settings import DataSettings
from flyweight.user_code import is_spec

Part = TypeVar("Part", Labelled, Examples)
Kind = Literal["arrays", "images", "tables"]

_TABLE_SUFFIXES = (*tables.SUFFIXES, *text.SUFFIXES)
_KNOWN = (
    "a folder of images by class; .npz or .npy; .csv, .tsv, .parquet, .jsonl or .txt; or file.py:function"
)

_TESTS: Mapping[Kind, Callable[[Path], bool]] = {
    "images": images.is_image,
    "arrays": lambda file: file.suffix.lower() in arrays.SUFFIXES,
    "tables": lambda file: file.suffix.lower() in _TABLE_SUFFIXES,
}


def open_data(
    spec: str | Path, settings: DataSettings, *, class_targets: bool | None = True, whole: bool = False
) -> Splits:
    """Training, calibration and evaluation data, checked for empty parts and values that are not finite.

    Args:
        spec: A file or folder of images, arrays, tables or texts, or ``file.py:function``.
        settings: Columns, sizes and seed.
        class_targets: Whether targets are classes; None lets their type decide: reals are not.
        whole: Evaluate on all of unsplit data, as `flyweight.data.splits.assemble` says.

    Raises:
        InputError: The data are missing, unreadable, of an unknown kind, empty, or not finite.
    """
    path = _existing(spec)
    if path is None:
        parts = read_python(str(spec), class_targets=class_targets)
    else:
        labelled, classes = _read(path, settings)
        parts = encode(labelled, class_targets, classes=classes)
    for name, examples in parts.items():
        check_examples(examples, name)
    splits = assemble(parts, settings, whole=whole)
    check_splits(splits)
    return splits


def open_inputs(spec: str | Path, settings: DataSettings, *, expected: Expected = NOTHING) -> Examples:
    """Inputs to run a model on; targets are neither needed nor kept.

    Of data that are split, the evaluation part is taken. Images may lie in any folders; their column
    ``file`` is the path below the folder that was given, or as a loader names it. All lines of a text file
    are inputs, blank ones too.

    Args:
        spec: As in `open_data`.
        settings: Columns; without them the expected ones are read where a table has them.
        expected: What is known of the model that is to answer.

    Raises:
        InputError: As `open_data`, or the data are of another kind than the model takes.
    """
    path = _existing(spec)
    if path is None:
        parts: Mapping[str, Examples] = read_python(str(spec), class_targets=None)
        inputs = _evaluation(parts).inputs
    else:
        _check_kind(path, spec, expected.kind)
        inputs = _evaluation(_read_inputs(path, settings, expected)).inputs
    examples = Examples(inputs, columns=_files(inputs, path))
    check_examples(examples, "given")
    return examples


def _files(inputs: Mapping[str, np.ndarray | Sequence[Any]], given: Path | None) -> dict[str, np.ndarray]:
    """Column `FILE_COLUMN` where the only input is image files, else nothing."""
    values = next(iter(inputs.values())) if len(inputs) == 1 else ()
    if not len(values) or not all(isinstance(value, Path) for value in values):
        return {}
    folder = given if given is None or given.is_dir() else given.parent
    files = values if folder is None else [value.relative_to(folder) for value in values]
    return {FILE_COLUMN: np.array([file.as_posix() for file in files])}


def _evaluation(parts: Mapping[str, Part]) -> Part:
    return parts["evaluation"] if "evaluation" in parts else next(iter(parts.values()))


def _existing(spec: str | Path) -> Path | None:
    """The path, or None if ``spec`` is a Python loader."""
    path = Path(spec)
    if path.exists():
        return path
    if isinstance(spec, str) and is_spec(spec):
        return None
    raise InputError(f"there is no file or folder {spec}; data are {_KNOWN}")


def _read(path: Path, settings: DataSettings) -> tuple[dict[str, Labelled], tuple[str, ...]]:
    kind = kind_of_path(path)
    if kind == "arrays":
        return arrays.read_arrays(path, settings)
    if kind == "images":
        if path.is_file():
            raise InputError(f"{path} is a single image; give a folder with one folder of images a class")
        return images.read_images(path), ()
    return examples_of(_read_tables(path, settings), settings), ()


def _check_kind(path: Path, spec: str | Path, wanted: Taken | None) -> None:
    """Raise InputError where a file or folder cannot hold what a model takes; arrays hold anything."""
    kind = kind_of_path(path)
    holds = "texts" if kind == "tables" and path.suffix.lower() == ".txt" else kind
    known: Mapping[str, tuple[Taken | None, ...]] = {
        "images": (None, "images"),
        "texts": (None, "texts"),
        "tables": (None, "texts", "numbers"),
    }
    if wanted not in known.get(holds, (wanted,)):
        named = "a table" if holds == "tables" else holds
        raise InputError(f"{spec} holds {named}, and the model takes {wanted}")


def _read_inputs(path: Path, settings: DataSettings, expected: Expected) -> dict[str, Labelled]:
    kind = kind_of_path(path)
    if kind == "arrays":
        return arrays.read_arrays(path, settings)[0]
    if kind == "images":
        return {
            "train": Labelled({images.INPUT_NAME: [path] if path.is_file() else images.list_images(path)})
        }
    tables_read = _read_tables(path, settings, labelled=False, known=expected.inputs)
    return examples_of(tables_read, settings, labelled=False, expected=expected)


def kind_of_path(path: Path) -> Kind:
    """What a file or folder holds, told by suffixes.

    Raises:
        InputError: Nothing that is known, or two kinds at once.
    """
    if path.is_file():
        kind = next((kind for kind, test in _TESTS.items() if test(path)), None)
        if kind is None:
            raise InputError(f"{path} is of no known kind; data are {_KNOWN}")
        return kind
    inside = sorted(path.iterdir())
    files = [file for file in inside if file.is_file()]
    found = {kind: [file for file in files if test(file)] for kind, test in _TESTS.items()}
    kinds = [kind for kind, named in found.items() if named]
    notes = all(file.suffix.lower() in text.NOTE_SUFFIXES for file in found["tables"])
    if (not kinds or (kinds == ["tables"] and notes)) and images.holds_images(path):
        return "images"
    if len(kinds) > 1 and notes:
        kinds = [kind for kind in kinds if kind != "tables"]
    if len(kinds) == 1:
        return kinds[0]
    raise InputError(_mixed(path, {kind: found[kind] for kind in kinds}, inside))


def _mixed(folder: Path, found: Mapping[Kind, Sequence[Path]], inside: Sequence[Path]) -> str:
    """What is wrong with a folder that holds no data, or data of two kinds."""
    if found:
        named = " and ".join(f"{kind} ({files[0].name})" for kind, files in found.items())
        return f"{folder} holds {named}; give one of its files, or take the others out"
    if not inside:
        return f"the folder {folder} is empty; data are {_KNOWN}"
    some = ", ".join(path.name for path in inside[:3])
    return f"the folder {folder} holds no data of a known kind ({some}); data are {_KNOWN}"


def _read_tables(
    path: Path, settings: DataSettings, *, labelled: bool = True, known: Sequence[str] = ()
) -> dict[str, Table]:
    """Tables by part; a single file is ``train``."""
    if path.is_file():
        return {"train": _read_table(path, settings, labelled=labelled, known=known)}
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in _TABLE_SUFFIXES)
    named: dict[str, Path] = {}
    for file in files:
        for part in filter(is_part, re.split(r"[-_. ]", file.stem.casefold())):
            if named.setdefault(part, file) != file:
                raise InputError(
                    f"{path} holds two files for {part}: {named[part].name} and {file.name}; keep one"
                )
    if not named and len(files) > 1:
        raise InputError(
            f"{path} holds {len(files)} tables and none is called train or test; give one, or rename them"
        )
    chosen = select_parts(named) if named else {"train": files[0]}
    return {use: _read_table(file, settings, labelled=labelled, known=known) for use, file in chosen.items()}


def _read_table(path: Path, settings: DataSettings, *, labelled: bool, known: Sequence[str]) -> Table:
    if path.suffix.lower() == ".jsonl":
        return text.read_json_lines(path)
    if path.suffix.lower() == ".txt":
        single = len(settings.inputs) == 1 and not settings.inputs[0].isdecimal()
        return text.read_lines(path, settings.inputs[0] if single else text.TEXT_NAME, blank=not labelled)
    target = () if settings.target is None else (settings.target,)
    requested = (*settings.inputs, *target, *settings.slices) if labelled else settings.inputs
    return tables.read_table(path, requested, () if settings.inputs else known)
