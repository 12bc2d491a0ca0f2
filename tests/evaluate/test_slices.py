"""Slices of a small data set."""

import numpy as np
import pytest

from flyweight.data.examples import Examples
from flyweight.evaluate.slices import slices
from flyweight.tasks.classification import Classification
from flyweight.tasks.regression import Regression
from flyweight.tasks.scores import Scores

TARGETS = np.repeat([0, 1, 2], [20, 30, 5])


def scores_of(correct):
    return Scores(correct.astype(float), np.where(correct, TARGETS, -1), TARGETS, correct)


def examples_of(**columns):
    return Examples({"x": np.zeros((55, 1))}, TARGETS, ("cat", "dog", "owl"), columns)


BEFORE, AFTER = scores_of(np.ones(55, bool)), scores_of(np.arange(55) >= 5)


def test_classes_come_worst_first_and_small_ones_are_left_out():
    found = slices(Classification(), BEFORE, AFTER, examples_of())
    assert [(s.name, s.examples, s.original, s.compressed) for s in found] == [
        ("class cat", 20, 1.0, 0.75),
        ("class dog", 30, 1.0, 1.0),
    ]


def test_minimum_is_settable():
    assert len(slices(Classification(), BEFORE, AFTER, examples_of(), minimum=5)) == 3


def test_each_value_of_a_column_is_a_slice():
    lights = np.array(["day"] * 25 + ["night"] * 30, dtype=object)
    names = [s.name for s in slices(Classification(), BEFORE, AFTER, examples_of(light=lights))]
    assert "light = day" in names
    assert "light = night" in names


def test_a_column_of_many_numbers_is_cut_at_its_quartiles():
    ages = np.where(np.arange(55) == 54, np.nan, np.arange(55.0))
    found = {
        s.name: s.examples for s in slices(Classification(), BEFORE, AFTER, examples_of(age=ages), minimum=1)
    }
    assert {k: v for k, v in found.items() if k.startswith("age")} == {
        "age = 0 to 13.25": 14,
        "age = 13.25 to 26.5": 13,
        "age = 26.5 to 39.75": 13,
        "age = 39.75 to 53": 14,
        "age = not finite": 1,
    }


def test_every_example_is_in_one_slice_of_each_column():
    generator = np.random.default_rng(0)
    columns = {"a": generator.integers(0, 100, 55), "b": generator.integers(0, 3, 55), "c": np.zeros(55)}
    found = slices(Classification(), BEFORE, AFTER, examples_of(**columns), minimum=1)
    for column in columns:
        assert sum(s.examples for s in found if s.name.startswith(f"{column} =")) == 55


def test_values_have_no_classes():
    targets = np.arange(55.0)[:, None]
    scores = Scores(np.zeros(55), targets, targets)
    assert slices(Regression(), scores, scores, examples_of()) == ()


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="one length"):
        slices(Classification(), BEFORE, AFTER, Examples({"x": np.zeros((3, 1))}))
