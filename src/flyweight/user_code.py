"""The user's own Python code, named ``file.py:name`` or ``package.module:name``. It is run: name your own."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from flyweight.errors import FlyweightError, InputError

MAX_REASON = 300  # characters of an error of the user's that are told

# Frames in the standard library, in installed packages and in this one say nothing about the user's mistake.
_NOT_THE_USERS = (
    *map(Path, {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}),
    Path(__file__).parent,
)

_SPEC = re.compile(r"(?P<module>[\w.]+|.+\.py):(?P<name>\w+)")


def is_spec(text: str) -> bool:
    """Whether ``text`` reads as ``file.py:name`` or ``package.module:name``."""
    return _SPEC.fullmatch(text) is not None


@contextmanager
def user_object(spec: str) -> Iterator[Any]:
    """What ``spec`` names. Inside, modules beside its file can be imported, and failures are one sentence.

    Raises:
        InputError: There is no such file, module or name, or the code inside raises an error of its own.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec!r} names nothing: write file.py:function or package.module:function")
    with importable_neighbours(Path(match["module"])):
        module = _module(match["module"])
        if match["name"] not in vars(module):
            raise InputError(f"{match['module']} has no {match['name']!r}{_alternatives(module)}")
        try:
            yield vars(module)[match["name"]]
        except FlyweightError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises is told as it is
            raise InputError(f"{spec} raised {reason(error)}") from error


def reason(error: BaseException) -> str:
    """``ValueError: its message (net.py, line 3: the line)`` on one line; the place is in the user's code."""
    text = " ".join(str(error).split())[:MAX_REASON]
    name = type(error).__name__
    return (f"{name}: {text}" if text else name) + _where(error)


def _where(error: BaseException) -> str:
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "<frozen" not in frame.filename
        and not any(Path(frame.filename).is_relative_to(folder) for folder in _NOT_THE_USERS)
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""


@contextmanager
def importable_neighbours(path: Path) -> Iterator[None]:
    """Inside, modules in the folder of a ``.py`` file can be imported, as they can when the file is run."""
    folder = str(path.resolve().parent) if path.suffix == ".py" else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _module(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix == ".py" and not path.is_file():
        raise InputError(f"there is no file {name}")
    try:
        return _from_file(path) if path.suffix == ".py" else importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises is told as it is
        raise InputError(f"importing {name} raised {reason(error)}") from error


def _from_file(path: Path) -> ModuleType:
    """The module in a file, under a name that shadows no other; dataclasses and pickle look it up there."""
    name = f"_flyweight_user_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def _alternatives(module: ModuleType) -> str:
    """``; it has net, load``: the public functions and classes the module itself defines."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return f"; it has {', '.join(own[:8])}" if own else ""
