"""Optional packages, imported where they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from flyweight.errors import MissingDependency


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """The imported module.

    Args:
        module: Dotted name, ``"openvino"``.
        extra: The extra of this package that installs it.
        purpose: What needs it, to begin the error's sentence: ``"running OpenVINO artifacts"``.

    Raises:
        MissingDependency: It is not installed; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.partition(".")[0]):
            raise
        raise MissingDependency(f"{purpose} needs {error.name}: pip install 'flyweight[{extra}]'") from error
