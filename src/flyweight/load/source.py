"""Whether what the settings call the model is there, told before any data are read. Nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NoReturn

from flyweight._atomic import holds_artifact
from flyweight.errors import InputError, UnsupportedError
from flyweight.load.huggingface import is_hub_id
from flyweight.load.huggingface_files import CONFIG
from flyweight.load.weights import WEIGHT_SUFFIXES, check_weights_file
from flyweight.settings import Settings
from flyweight.user_code import importable_neighbours, is_spec

_UNREAD = {
    ".onnx": "an ONNX model",
    ".tflite": "a TensorFlow Lite model",
    ".h5": "a Keras model",
    ".keras": "a Keras model",
    ".pb": "a TensorFlow model",
    ".mlmodel": "a Core ML model",
    ".gguf": "a GGUF model",
}
_KNOWN = "name file.py:factory, package.module:name, or a Hugging Face folder"
_DYNAMIC = frozenset({"globals", "vars", "exec", "setattr"})  # calls that may bind names nobody sees


def check_model_source(settings: Settings) -> None:
    """Nothing, if there is a model of that name, as far as can be told without running code.

    A hub id is not looked up.

    Raises:
        InputError: The file, the name in it, the module, the folder or the weights are not there, or are not
            what a model can be.
        UnsupportedError: It is a file of a format that is not read yet.
    """
    if is_spec(settings.model):
        _check_code(*settings.model.rsplit(":", 1))
        if settings.weights is not None:
            check_weights_file(Path(settings.weights))
        return
    path = Path(settings.model)
    if path.is_file():
        _refuse_file(path, settings.model)
    if not path.exists() and not is_hub_id(settings.model):
        raise InputError(f"model {settings.model} does not exist; {_KNOWN}")
    if path.is_dir():
        _check_folder(path, settings.model)
    if settings.weights is not None or settings.model_arguments:
        raise InputError(
            f"{settings.model} brings its own weights and arguments; leave out --weights and --model-arg"
        )


def _refuse_file(path: Path, given: str) -> NoReturn:
    suffix = path.suffix.lower()
    if suffix in _UNREAD:
        raise UnsupportedError(
            f"{given} is {_UNREAD[suffix]}, which is not read yet; name the PyTorch code of the model, "
            "file.py:factory, or a Hugging Face folder"
        )
    if suffix in WEIGHT_SUFFIXES:
        raise InputError(
            f"{given} holds weights alone; name the code that makes the model, file.py:factory, and give "
            f"--weights {given}"
        )
    if suffix == ".py":
        has = ", ".join(_public(_parsed(path)))
        raise InputError(
            f"{given} names no function; write {given}:NAME{f' with one of {has}' if has else ''}"
        )
    raise InputError(f"model {given} is a file; {_KNOWN}")


def _check_folder(folder: Path, given: str) -> None:
    if holds_artifact(folder):
        raise InputError(f"{given} is an artifact of flyweight already; name the model it was made from")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{given} holds no {CONFIG}; give a Hugging Face folder, or file.py:factory")


def _check_code(module: str, name: str) -> None:
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise InputError(f"there is no file {module}")
        _check_name(Path(module), module, name)
    elif module not in sys.modules:  # what is loaded already, the loader tells as soon
        with importable_neighbours(Path(module)):
            found = _found(module)
        if found.origin is not None and found.origin.endswith(".py"):
            _check_name(Path(found.origin), module, name)


def _found(module: str) -> ModuleSpec:
    """Where a module is; packages around it are not imported."""
    names = module.split(".")
    specs = (finder.find_spec(names[0], None) for finder in sys.meta_path)
    found = next((spec for spec in specs if spec is not None), None)
    for count, name in enumerate(names[1:], 1):
        within = _existing(found, module, names[:count]).submodule_search_locations
        found = None if within is None else PathFinder.find_spec(name, within)
    return _existing(found, module, names)


def _existing(found: ModuleSpec | None, module: str, part: Sequence[str]) -> ModuleSpec:
    if found is None:
        raise InputError(f"{module} cannot be imported: No module named {'.'.join(part)!r}")
    return found


def _check_name(file: Path, shown: str, name: str) -> None:
    tree = _parsed(file)
    names = set(_bound(tree))
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    dynamic = any(isinstance(called, ast.Name) and called.id in _DYNAMIC for called in calls)
    if name in names or names & {"*", "__getattr__"} or dynamic:
        return
    has = ", ".join(_public(tree)[:8])
    raise InputError(f"{shown} has no {name!r}{f'; it has {has}' if has else ''}")


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise InputError(f"{file} is no Python: {error.msg} (line {error.lineno})") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _public(tree: ast.Module) -> list[str]:
    """Functions and classes of the module itself."""
    own = (
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )
    return [name for name in own if not name.startswith("_")]


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that the module binds, ``*`` for those of a star import; a few too many, of comprehensions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
            yield from (
                name for inner in ast.walk(child) if isinstance(inner, ast.Global) for name in inner.names
            )
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in child.names)
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        yield from _bound(child)
