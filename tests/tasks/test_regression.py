"""Regression against scikit-learn's R²."""

import numpy as np
import pytest

from flyweight.core.protocols import Task
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.regression import Regression


def splits_of(targets):
    examples = Examples({"x": np.zeros((len(targets), 2))}, np.asarray(targets))
    return Splits(examples, examples, examples)


def test_regression_is_a_task():
    assert isinstance(Regression(), Task)


@pytest.mark.parametrize("values", [1, 3])
def test_metric_is_r2(values):
    from sklearn.metrics import r2_score

    generator = np.random.default_rng(0)
    targets = generator.normal(size=(30, values)) * np.arange(1, values + 1)
    outputs = targets + generator.normal(size=targets.shape)
    scores = Regression().score(outputs, splits_of(targets))
    expected = r2_score(targets, outputs, multioutput="variance_weighted")
    assert Regression().metric(scores) == pytest.approx(expected)


def test_a_column_of_outputs_answers_plain_targets():
    scores = Regression().score(np.array([[1.0], [4.0]]), splits_of([1.0, 2.0]))
    assert scores.per_example.tolist() == [0, -4]


@pytest.mark.parametrize(("outputs", "r2"), [([2.0, 2.0], 1.0), ([2.0, 3.0], 0.0)])
def test_equal_targets_give_1_without_error_and_0_with(outputs, r2):
    assert Regression().metric(Regression().score(np.array(outputs), splits_of([2.0, 2.0]))) == r2


def test_outputs_of_another_width_are_refused():
    with pytest.raises(InputError, match="needs 1 values an example, as the targets have; the model gives 2"):
        Regression().score(np.zeros((2, 2)), splits_of([1.0, 2.0]))


def test_infinite_outputs_are_refused():
    with pytest.raises(InputError, match="first at query 1"):
        Regression().score(np.array([0.0, np.inf]), splits_of([1.0, 2.0]))


@pytest.mark.parametrize("target", [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused(target):
    with pytest.raises(InputError, match="needs finite targets; the one of example 1"):
        Regression().queries(splits_of([1.0, target]))


def test_classes_are_refused():
    examples = Examples({"x": np.zeros((2, 1))}, np.array([0, 1]), ("cat", "dog"))
    with pytest.raises(InputError, match="needs numbers as targets, and the data hold classes: cat, dog"):
        Regression().queries(Splits(examples, examples, examples))


def test_answers_number_several_values():
    assert Regression().answers(np.array([1.0, 2.0]), []) == {"value": [1.0, 2.0]}
    assert list(Regression().answers(np.zeros((2, 2)), [])) == ["value_0", "value_1"]
