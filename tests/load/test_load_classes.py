"""Labels of the data in the model's order of classes."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.load.classes import in_model_order


def splits(classes: tuple[str, ...]) -> Splits:
    part = Examples({"x": np.zeros((3, 1), np.float32)}, np.array([0, 1, 1]), classes)
    return Splits(part, part, part)


def test_labels_are_matched_by_name_whatever_the_case():
    ordered = in_model_order(splits(("cat", "dog")), ("Dog", "Mouse", "Cat"))
    assert ordered.evaluation.targets.tolist() == [2, 0, 0]
    assert ordered.train.classes == ("Dog", "Mouse", "Cat")


def test_numbers_are_indices_already():
    ordered = in_model_order(splits(("1", "2")), ("a", "b", "c"))
    assert ordered.evaluation.targets.tolist() == [1, 2, 2]


def test_a_model_without_names_changes_nothing():
    given = splits(("cat", "dog"))
    assert in_model_order(given, ()) is given


def test_a_strange_label_is_named():
    with pytest.raises(InputError, match="class 'dog' of the data is none of the model's: cat, mouse"):
        in_model_order(splits(("cat", "dog")), ("cat", "mouse"))
