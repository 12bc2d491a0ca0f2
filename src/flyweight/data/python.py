"""Data made by the user's own function, ``file.py:loader`` or ``package.module:loader``.

The function takes no argument and returns one of: `Splits`; `Examples`; ``(inputs, targets)``; a dict of
such pairs with keys ``train``, ``calibration``, ``evaluation`` (or ``test``, ``val``); or, unlabelled,
``inputs`` alone. Inputs are an array, a list of texts or of image paths (`pathlib.Path`), or a dict of
these by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.data.splits import is_part, select_parts
from flyweight.data.steps import MATRIX_NAME
from flyweight.data.targets import Labelled, encode
from flyweight.errors import InputError

_SPEC = re.compile(r"(?P<module>[\w.]+|.+\.py):(?P<function>\w+)")


def is_loader(spec: str) -> bool:
    """Whether ``spec`` reads as ``file.py:loader`` or ``package.module:loader``."""
    return _SPEC.fullmatch(spec) is not None


def read_python(spec: str, *, class_targets: bool | None = True) -> dict[str, Examples]:
    """What the function returns, by part.

    Args:
        spec: ``file.py:loader`` or ``package.module:loader``.
        class_targets: As in `flyweight.data.targets.encode`, for targets that are not in `Examples` already.

    Raises:
        InputError: There is no such function, it raises, or it returns something else.
    """
    returned = _called(spec)
    if isinstance(returned, Splits):
        return {
            "train": returned.train,
            "calibration": returned.calibration,
            "evaluation": returned.evaluation,
        }
    if (
        isinstance(returned, Mapping)
        and returned
        and all(isinstance(k, str) and is_part(k) for k in returned)
    ):
        parts = select_parts(returned)
    else:
        parts = {"train": returned}
    if all(isinstance(part, Examples) for part in parts.values()):
        return parts
    return encode({use: _labelled(part, f"{spec} ({use})") for use, part in parts.items()}, class_targets)


def _called(spec: str) -> object:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec!r} is no loader; write file.py:function or package.module:function")
    with _importable_neighbours(Path(match["module"])):
        function = getattr(_module(match["module"]), match["function"], None)
        if not callable(function):
            raise InputError(f"{match['module']} has no function {match['function']!r}")
        try:
            returned: object = function()
        except Exception as error:  # whatever the user's code raises is told as it is
            raise InputError(f"{spec} raised {type(error).__name__}: {error}{_where(error)}") from error
    return returned


@contextmanager
def _importable_neighbours(path: Path) -> Iterator[None]:
    """Inside, modules in the folder of a ``.py`` file can be imported, as they can when the file is run."""
    if path.suffix != ".py":
        yield
        return
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _where(error: BaseException) -> str:
    """`` (file.py, line 3: the line)`` of the innermost frame that is not in an installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if "site-packages" not in f.filename and f.filename != __file__ and "<frozen" not in f.filename
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""


def _module(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix == ".py" and not path.is_file():
        raise InputError(f"there is no file {name}")
    try:
        return _from_file(path) if path.suffix == ".py" else importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises is told as it is
        raise InputError(f"importing {name} raised {type(error).__name__}: {error}{_where(error)}") from error


def _from_file(path: Path) -> ModuleType:
    """The module in a file, under a name that shadows no other; dataclasses and pickle look it up there."""
    name = f"_flyweight_loader_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def _labelled(part: object, where: str) -> Labelled:
    if isinstance(part, Examples):
        return Labelled(part.inputs, part.targets, part.columns)
    inputs, targets = part if isinstance(part, tuple) and len(part) == 2 else (part, None)
    return Labelled(
        _inputs(inputs, where), None if targets is None else _array(targets, f"the targets of {where}")
    )


def _inputs(inputs: object, where: str) -> dict[str, np.ndarray | Sequence[Any]]:
    if isinstance(inputs, Mapping) and inputs and all(isinstance(name, str) for name in inputs):
        return {name: _column(values, f"input {name!r} of {where}") for name, values in inputs.items()}
    return {MATRIX_NAME: _column(inputs, f"the inputs of {where}")}


def _column(values: object, what: str) -> np.ndarray | Sequence[Any]:
    if isinstance(values, list | tuple) and values and isinstance(values[0], str | Path | np.ndarray):
        return list(values)
    return _array(values, what)


def _array(values: object, what: str) -> np.ndarray:
    """``values`` (an array, a tensor, a list of numbers or texts) as an array with examples on axis 0."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{what} cannot be made an array: {error}") from error
    if array.ndim == 0 or array.dtype.kind not in "biufU":
        raise InputError(
            f"{what} are a {type(values).__name__}; return Splits, Examples, (inputs, targets), "
            "or a dict of such pairs with keys train and test"
        )
    return array
