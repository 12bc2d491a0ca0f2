"""Parity of outputs."""

import numpy as np
import pytest

from flyweight.errors import ParityError
from flyweight.evaluate.parity import parity

ONES = np.ones((2, 3), np.float32)


def check(expected, found, tolerance=1e-3):
    return parity([[expected]], [[found]], ["x 2x3"], tolerance=tolerance)


def test_equal_outputs_have_no_error():
    found = check(ONES, ONES.copy())
    assert (found.relative_error, found.max_abs, found.shapes) == (0, 0, ("x 2x3",))


def test_error_is_relative_root_mean_square_and_largest_absolute():
    other = ONES.copy()
    other[0, 0] += 0.5
    found = check(ONES, other, tolerance=1.0)
    assert found.relative_error == pytest.approx(0.5 / np.sqrt(6))
    assert found.max_abs == 0.5


def test_a_small_output_is_not_hidden_by_a_large_one():
    small, large = np.full(2, 1e-3), np.full(2, 1e3)
    with pytest.raises(ParityError, match="output 1 of the file at x is off"):
        parity([[large, small]], [[large, 2 * small]], ["x"], tolerance=0.01)


def test_the_worst_shape_counts():
    found = parity([[ONES], [ONES]], [[ONES], [ONES * 1.5]], ["a", "b"], tolerance=1.0)
    assert found.relative_error == pytest.approx(0.5)


def test_the_sentence_names_output_shape_and_error():
    message = (
        r"output 0 of the file at x 2x3 is off .* relative error 1 is above 0\.001 \(largest difference 1\)"
    )
    with pytest.raises(ParityError, match=message):
        check(ONES, 2 * ONES)


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        (ONES, ONES[:1], r"has shape \(1, 3\), the PyTorch reference \(2, 3\)"),
        (ONES, ONES * np.nan, "at x 2x3 holds NaN"),
        (ONES * np.nan, ONES, "holds NaN in that of the PyTorch reference"),
        (ONES, ONES * np.inf, "infinite at other places"),
        (0 * ONES, ONES, "relative error inf"),
    ],
)
def test_what_cannot_match_is_refused(expected, found, message):
    with pytest.raises(ParityError, match=message):
        check(expected, found)


def test_a_missing_output_is_refused():
    with pytest.raises(ParityError, match="the file has 1 outputs at x, the PyTorch reference 2"):
        parity([[ONES, ONES]], [[ONES]], ["x"], tolerance=1.0)


def test_equal_infinities_and_zero_outputs_match():
    masked = np.array([1.0, -np.inf])
    assert check(masked, masked.copy()).relative_error == 0
    assert check(0 * ONES, 0 * ONES).relative_error == 0


def test_integer_outputs_are_compared_too():
    with pytest.raises(ParityError, match="output 0"):
        check(np.array([1, 2]), np.array([1, 3]))


def test_arguments_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="outputs for each shape"):
        parity([[ONES]], [], ["x"], tolerance=1.0)
    with pytest.raises(ValueError, match="tolerance"):
        check(ONES, ONES, tolerance=0.0)
