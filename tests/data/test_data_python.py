import sys
from pathlib import Path

import numpy as np
import pytest

from flyweight.data.load import open_data, open_inputs
from flyweight.errors import InputError
from flyweight.settings import DataSettings
from flyweight.user_code import is_spec

SETTINGS = DataSettings(calibration_size=2)


def loader(folder: Path, body: str) -> str:
    lines = [
        "import numpy as np",
        "from pathlib import Path",
        "from flyweight.data.examples import Examples, Splits",
    ]
    lines += ["X, Y = np.arange(16.0).reshape(8, 2), np.arange(8) % 2", "def make_data():", f"    {body}"]
    (folder / "my_data.py").write_text("\n".join(lines))
    return f"{folder / 'my_data.py'}:make_data"


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        ("return X, Y", (6, 2)),
        ("return Examples({'x': X}, Y, ('a', 'b'))", (6, 2)),
        ("return {'train': (X, Y), 'test': (X[:3], Y[:3])}", (8, 3)),
        ("return {'train': (X, Y), 'calibration': X[:1], 'val': Examples({'x': X[:3]}, Y[:3])}", (8, 3)),
        ("e = Examples({'x': X}, Y); return Splits(e, e, e)", (8, 8)),
        ("return {'left': X, 'right': X}, Y", (6, 2)),
        ("return X.tolist(), Y.tolist()", (6, 2)),
        ("return ['a', 'b', 'c', 'd'], ['x', 'y', 'x', 'y']", (3, 1)),
    ],
)
def test_every_form_of_return_is_understood(tmp_path, body, sizes):
    data = open_data(loader(tmp_path, body), SETTINGS)
    assert (len(data.train), len(data.evaluation)) == sizes
    assert data.evaluation.targets.dtype == np.int64


@pytest.mark.parametrize(
    "body", ["return X", "return X, Y", "return {'train': (X[:1], Y[:1]), 'test': (X, Y)}"]
)
def test_inputs_need_no_targets(tmp_path, body):
    assert len(open_inputs(loader(tmp_path, body), SETTINGS)) == 8


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"raised ZeroDivisionError: division by zero \(my_data\.py, line 6: return 1 / 0\)"),
        ("return None", "are a NoneType; return Splits, Examples"),
        ("return 'text'", "are a str"),
        ("return [[1], [1, 2]], Y", "cannot be made an array"),
        ("return X, Y[:3]", "differ in length"),
        ("return np.array([{}]), Y", "are a ndarray"),
        ("return X * np.nan, Y", "not finite in example 0"),
        ("return X[:0], Y[:0]", "data are empty"),
        ("return X, Y + 0.5", "is not a class"),
    ],
)
def test_what_goes_wrong_is_one_clear_sentence(tmp_path, body, message):
    with pytest.raises(InputError, match=message):
        open_data(loader(tmp_path, body), SETTINGS)


def test_a_missing_file_module_or_function_is_named(tmp_path):
    spec = loader(tmp_path, "return X, Y")
    with pytest.raises(InputError, match="has no 'other'"):
        open_data(spec.replace("make_data", "other"), SETTINGS)
    with pytest.raises(InputError, match=r"there is no file nowhere\.py"):
        open_data("nowhere.py:make", SETTINGS)
    with pytest.raises(InputError, match="importing no_such_module raised ModuleNotFoundError"):
        open_data("no_such_module:make", SETTINGS)


def test_an_error_while_importing_names_the_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\nraise KeyError('here')\n")
    with pytest.raises(InputError, match=r"KeyError: 'here' \(bad\.py, line 2"):
        open_data(f"{tmp_path / 'bad.py'}:make", SETTINGS)


def test_a_loader_can_import_its_neighbours_and_leaves_the_path_alone(tmp_path):
    (tmp_path / "neighbour_of_loader.py").write_text(
        "import numpy as np\nX = np.zeros((4, 2)) + np.arange(4)[:, None]\n"
    )
    (tmp_path / "own.py").write_text(
        "def make():\n    import neighbour_of_loader as n\n    return n.X, [0, 1, 0, 1]\n"
    )
    before = list(sys.path)
    assert len(open_data(f"{tmp_path / 'own.py'}:make", SETTINGS).train) == 3
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "expected"), [("a.py:f", True), ("a.b:f", True), ("data.csv", False), ("a b:f", False)]
)
def test_loaders_are_told_from_paths(spec, expected):
    assert is_spec(spec) is expected


def test_a_loader_can_define_dataclasses(tmp_path):
    lines = [
        "from __future__ import annotations",
        "from dataclasses import dataclass",
        "@dataclass",
        "class A:",
    ]
    lines += ["    x: int", "def make():", "    return [[1.0], [2.0]], [0, 1]"]
    (tmp_path / "with_class.py").write_text("\n".join(lines))
    assert len(open_data(f"{tmp_path / 'with_class.py'}:make", SETTINGS).train) == 1
