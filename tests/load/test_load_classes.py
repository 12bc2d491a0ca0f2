"""Labels of the data in the model's order of classes."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.load.classes import check_count, in_model_order


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


def test_numbers_that_are_the_models_names_are_matched_by_name():
    part = Examples({"x": np.zeros((3, 1), np.float32)}, np.array([1, 5, 2]), tuple("012345"))
    ordered = in_model_order(Splits(part, part, part), ("5", "4", "3", "2", "1"))
    assert ordered.evaluation.targets.tolist() == [4, 0, 3]


def test_indices_without_names_take_the_models():
    part = Examples({"x": np.zeros((3, 1), np.float32)}, np.array([1, 0, 1]))
    ordered = in_model_order(Splits(part, part, part), ("a", "b"))
    assert ordered.evaluation.targets.tolist() == [1, 0, 1]
    assert ordered.evaluation.classes == ("a", "b")


def test_names_that_differ_in_case_alone_stay_apart():
    assert in_model_order(splits(("A", "a")), ("a", "A")).evaluation.targets.tolist() == [1, 0, 0]


@pytest.mark.parametrize("label", [-1, 3])
def test_an_index_out_of_the_models_range_is_refused(label):
    part = Examples({"x": np.zeros((2, 1), np.float32)}, np.array([0, label]))
    with pytest.raises(InputError, match=f"label {label} .* 2 classes of the model are named"):
        in_model_order(Splits(part, part, part), ("a", "b"))


def test_values_that_are_no_classes_stay_as_they_are():
    part = Examples({"x": np.zeros((2, 1), np.float32)}, np.array([0.5, 2.5], np.float32))
    assert in_model_order(Splits(part, part, part), ("a", "b")).evaluation.targets is part.targets


@pytest.mark.parametrize(("names", "outputs"), [(("a", "b"), 3), (("a", "b", "c"), 2)])
def test_names_for_another_number_of_outputs_are_refused(names, outputs):
    with pytest.raises(InputError, match=f"{outputs} outputs, and classes names {len(names)}"):
        check_count(names, outputs)


def test_a_model_without_names_changes_nothing():
    given = splits(("cat", "dog"))
    assert in_model_order(given, ()) is given


def test_a_strange_label_is_named():
    with pytest.raises(InputError, match="class 'dog' of the data is none of the model's: cat, mouse"):
        in_model_order(splits(("cat", "dog")), ("cat", "mouse"))
