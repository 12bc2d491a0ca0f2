from __future__ import annotations

import os

import numpy as np
import pytest

from flyweight.errors import InputError
from flyweight.run.inputs import InputCheck, thread_count
from flyweight.run.manifest import TensorSpec

IDS = TensorSpec("ids", "int64", ("batch", "tokens"))
MASK = TensorSpec("mask", "int64", ("batch", "tokens"))
IMAGE = TensorSpec("image", "float32", ("batch", 1, "?", "?"))


def ones(*shape: int, dtype: str = "int64") -> np.ndarray:
    return np.ones(shape, dtype)


def test_arrays_that_fit_pass() -> None:
    InputCheck([IDS, MASK])({"mask": ones(2, 7), "ids": ones(2, 7)})
    InputCheck([IMAGE])({"image": ones(3, 1, 4, 5, dtype="float32")})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": ones(2, 7)}, "input 'mask' is missing: the model takes ids, mask"),
        (
            {"ids": ones(2, 7), "mask": ones(2, 7), "x": ones(1)},
            "there is no input 'x': the model takes ids, mask",
        ),
        (
            {"ids": ones(2, 7), "mask": ones(2, 7, dtype="int32")},
            "input 'mask' must be int64 (batch, tokens) where",
        ),
        ({"ids": ones(2), "mask": ones(2, 7)}, "input 'ids' must be int64 (batch, tokens), got int64 (2)"),
        ({"ids": ones(2, 7), "mask": ones(2, 8)}, "where batch is 2, tokens is 7, got int64 (2, 8)"),
    ],
)
def test_what_does_not_fit_is_named_with_wanted_and_given(
    arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        InputCheck([IDS, MASK])(arrays)
    assert message in str(caught.value)


def test_a_fixed_size_is_checked() -> None:
    with pytest.raises(InputError, match=r"must be float32 \(batch, 1, \?, \?\)"):
        InputCheck([IMAGE])({"image": ones(3, 2, 4, 5, dtype="float32")})


def test_zero_threads_are_all_cores_of_the_process() -> None:
    assert thread_count(3) == 3
    assert 1 <= thread_count(0) <= (os.cpu_count() or 1)
    with pytest.raises(ValueError, match="at least 0"):
        thread_count(-1)
