import numpy as np
import pytest

from flyweight.data.checks import check_examples, check_splits, check_targets
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError

GOOD = Examples({"x": np.ones((3, 2), np.float32)}, np.array([0, 1, 2]))


def test_good_data_pass():
    check_splits(Splits(GOOD, GOOD, GOOD))
    check_targets(GOOD, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 4999])
def test_the_first_value_that_is_not_finite_is_named(value, row):
    x = np.ones((5000, 2))
    x[row, 1] = value
    with pytest.raises(InputError, match=f"evaluation input 'x' is missing or not finite in example {row}"):
        check_examples(Examples({"x": x}), "evaluation")


def test_targets_that_are_not_finite_are_named():
    with pytest.raises(InputError, match="train target is missing or not finite in example 1"):
        check_examples(Examples({"x": np.ones(2)}, np.array([0.0, np.nan], np.float32)), "train")


def test_an_empty_part_is_named():
    with pytest.raises(InputError, match="calibration data are empty"):
        check_splits(Splits(GOOD, Examples({"x": np.ones((0, 2))}), GOOD))


def test_one_output_is_a_value_and_no_classes():
    with pytest.raises(InputError, match=r"the model has 1 output: .* --task regression"):
        check_targets(GOOD, 1)


def test_labels_beyond_the_outputs_are_out_of_range():
    with pytest.raises(InputError, match=r"label 2 \(example 2\) is out of range: the model has 2 outputs"):
        check_targets(GOOD, 2)


@pytest.mark.parametrize("targets", [None, np.ones(3, np.float32), np.ones((3, 2), np.int64)])
def test_targets_that_are_no_classes_are_refused(targets):
    with pytest.raises(InputError, match="target"):
        check_targets(Examples({"x": np.ones(3)}, targets), 2)
