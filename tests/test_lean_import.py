"""Light modules load no heavy package, and code that answers on a device loads no torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import flyweight

SOURCE = Path(flyweight.__file__).parent
CORE = sorted(path.stem for path in (SOURCE / "core").glob("*.py") if path.stem != "__init__")
LIGHT = ["flyweight", *(f"flyweight.core.{name}" for name in CORE), "flyweight.catalog", "flyweight.settings"]
LIGHT += ["flyweight.errors", "flyweight.progress", "flyweight.cli"]
WITHOUT_TORCH = [
    "flyweight.run.predict",
    "flyweight.run.onnxruntime",
    *(f"flyweight.{folder}.{path.stem}" for folder in ("evaluate", "tasks", "data", "report")
      for path in sorted((SOURCE / folder).glob("[!_]*.py"))),
]  # fmt: skip
OPTIONAL = {"onnxruntime", "transformers", "tokenizers", "pandas", "PIL", "openvino", "matplotlib", "sklearn"}


def loaded_by(module: str) -> set[str]:
    """Top-level packages in a fresh interpreter after importing ``module``."""
    script = (
        f"import {module}, sys, json; print(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_neither_torch_nor_numpy(module: str) -> None:
    assert not loaded_by(module) & {"torch", "numpy", "scipy", "onnx", *OPTIONAL}


def test_code_that_answers_on_a_device_loads_no_torch() -> None:
    assert not loaded_by(", ".join(WITHOUT_TORCH)) & {"torch", *OPTIONAL}


def test_importing_flyweight_loads_nothing_but_the_standard_library() -> None:
    own = {"flyweight"}
    assert not loaded_by("flyweight") - loaded_by("sys") - own - sys.stdlib_module_names


@pytest.mark.parametrize("name", CORE)
def test_core_imports_only_the_standard_library_and_itself(name: str) -> None:
    tree = ast.parse((SOURCE / "core" / f"{name}.py").read_text())
    for module in imported(tree):
        package, _, rest = module.partition(".")
        assert package in sys.stdlib_module_names or (package == "flyweight" and rest.startswith("core."))


def imported(tree: ast.Module) -> list[str]:
    """Modules a file imports when it runs, not those it names for type checkers."""
    for_checkers = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"
    ]
    skipped = {id(inner) for outer in for_checkers for inner in ast.walk(outer)}
    found: list[str] = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    return found
