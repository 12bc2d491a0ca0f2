from pathlib import Path

import numpy as np
import pytest

from flyweight.data.root_inputs import read_root_inputs
from flyweight.errors import InputError


def saved(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path / "d.npz", **arrays)
    return str(path / "d.npz")


def test_arrays_are_read_by_the_names_of_inputs_and_floats_are_float32(tmp_path: Path):
    found = read_root_inputs(saved(tmp_path, a=np.ones((2, 3)), b=np.arange(2)), ["a", "b"])
    assert {name: (array.shape, str(array.dtype)) for name, array in found.items()} == {
        "a": ((2, 3), "float32"),
        "b": ((2,), "int64"),
    }


def test_a_single_array_is_the_first_input(tmp_path: Path):
    np.save(tmp_path / "d.npy", np.zeros((4, 2)))
    assert read_root_inputs(str(tmp_path / "d.npy"), ["tokens", "mask"])["tokens"].shape == (4, 2)


def test_a_function_gives_them_too(tmp_path: Path):
    (tmp_path / "own_loader.py").write_text(
        "import numpy as np\ndef load():\n    return {'x': np.arange(3)}\ndef bad():\n    return 3\n"
    )
    found = read_root_inputs(f"{tmp_path / 'own_loader.py'}:load", ["x"])
    assert found["x"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="bad returned a int; return a dict of arrays by input name"):
        read_root_inputs(f"{tmp_path / 'own_loader.py'}:bad", ["x"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones(2), "c": np.ones(2)}, "holds 'c'; the model's inputs are a, b"),
        ({"a": np.ones(2), "b": np.ones(3)}, "different numbers of examples: a 2, b 3"),
        ({"a": np.array(["x"])}, "'a' of .* must hold numbers"),
        ({"a": np.ones(())}, "'a' of .* must hold numbers, examples on axis 0"),
        ({}, "different numbers of examples: none"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str):
    with pytest.raises(InputError, match=message):
        read_root_inputs(saved(tmp_path, **arrays), ["a", "b"])


def test_a_file_that_is_no_array_is_named(tmp_path: Path):
    (tmp_path / "d.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read the arrays in"):
        read_root_inputs(str(tmp_path / "d.npz"), ["a"])
