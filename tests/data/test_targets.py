import numpy as np
import pytest

from flyweight.data.targets import Labelled, encode
from flyweight.errors import InputError


def parts(**labels) -> dict[str, Labelled]:
    return {
        n: Labelled({"x": np.zeros(len(v))}, None if v is None else np.array(v)) for n, v in labels.items()
    }


def test_texts_become_indices_of_the_sorted_training_texts():
    out = encode(parts(train=["b", "a", "c"], evaluation=["c"]), True)
    assert out["train"].classes == ("a", "b", "c")
    assert out["train"].targets.tolist() == [1, 0, 2]
    assert out["evaluation"].targets.tolist() == [2]


def test_a_text_that_training_lacks_is_refused():
    with pytest.raises(InputError, match=r"evaluation label 'z' \(example 0\) is none of the 1 known"):
        encode(parts(train=["a"], evaluation=["z"]), True)


@pytest.mark.parametrize("labels", [[0, 2, 1], [0.0, 2.0, 1.0], [[0], [2], [1]]])
def test_whole_numbers_are_classes_by_value(labels):
    out = encode(parts(train=labels), True)["train"]
    assert (out.targets.dtype, out.targets.tolist(), out.classes) == (np.int64, [0, 2, 1], ("0", "1", "2"))


def test_real_targets_keep_their_digits():
    seconds = [1_700_000_000, 1_700_000_039]
    assert encode(parts(train=seconds), False)["train"].targets.tolist() == seconds
    assert encode(parts(train=[1.5, 0.1]), None)["train"].targets.tolist() == [1.5, 0.1]


def test_without_a_wish_the_type_decides():
    assert encode(parts(train=[1, 2]), None)["train"].targets.dtype == np.int64
    assert encode(parts(train=["a", "b"]), False)["train"].classes == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 4.75], r"target 4\.75 \(example 1\) is not a class; choose a task for real values"),
        ([0, -1], r"target -1 \(example 1\) is no class"),
        ([0, 10**7], "is no class"),
        ([0.0, np.nan], "target nan"),
        ([[0, 1], [1, 0]], "one class index an example"),
        ([["a", "b"]], "must be one an example"),
    ],
)
def test_what_is_no_class_is_refused(labels, message):
    with pytest.raises(InputError, match=message):
        encode(parts(train=labels), True)


def test_unlabelled_data_stay_unlabelled():
    out = encode({"train": Labelled({"x": np.zeros(2)})}, True)["train"]
    assert out.targets is None
    assert out.classes == ()


def test_given_names_are_used():
    assert encode(parts(train=[0, 1]), True, classes=["cat", "dog"])["train"].classes == ("cat", "dog")
