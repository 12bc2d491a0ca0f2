"""Classification scored by hand and by definition."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flyweight.core.protocols import Task
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.classification import Classification


def splits_of(targets, classes=()):
    examples = Examples({"x": np.zeros((len(targets), 2))}, np.asarray(targets), classes)
    return Splits(train=examples, calibration=examples, evaluation=examples)


LOGITS = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 2.0], [5.0, 0.0, 4.0]], np.float32)


def test_classification_is_a_task():
    assert isinstance(Classification(), Task)


def test_top_1_accuracy_counts_right_answers():
    scores = Classification().score(LOGITS, splits_of([0, 1, 1, 2]))
    assert scores.correct is not None
    assert scores.correct.tolist() == [True, True, False, False]
    assert Classification().metric(scores) == 0.5


def test_top_2_accuracy_counts_the_second_answer():
    task = Classification(top_k=2)
    assert task.metric(task.score(LOGITS, splits_of([0, 1, 1, 1]))) == 0.75
    assert task.metric_name == "top-2 accuracy"


def test_confidence_is_the_softmax_of_the_answer():
    scores = Classification().score(LOGITS[:1], splits_of([0]))
    assert scores.confidence is not None
    assert scores.confidence[0] == pytest.approx(np.exp(3) / (np.exp(3) + np.exp(1) + 1))


def test_probabilities_are_not_softmaxed_again():
    scores = Classification().score(np.array([[0.7, 0.3], [0.4, 0.6]]), splits_of([0, 0]))
    assert scores.confidence is not None
    assert scores.confidence.tolist() == pytest.approx([0.7, 0.6])


def test_of_equal_outputs_the_first_class_wins():
    flat = np.zeros((1, 4), np.float32)
    assert Classification().score(flat, splits_of([0])).per_example[0] == 1.0
    assert Classification(top_k=2).score(flat, splits_of([2])).per_example[0] == 0.0


def test_a_masked_class_may_be_minus_infinity():
    outputs = np.array([[1.0, -np.inf, 0.0]])
    assert Classification().metric(Classification().score(outputs, splits_of([0]))) == 1.0


def test_answers_name_classes_and_fall_back_to_the_index():
    answers = Classification(top_k=2).answers(LOGITS, ["cat", "dog"])
    assert list(answers) == ["label", "probability", "label_2", "probability_2"]
    assert answers["label"] == ["cat", "dog", 2, "cat"]
    assert answers["label_2"] == ["dog", 2, "dog", 2]


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_is_one_clear_sentence(label):
    with pytest.raises(
        InputError, match=rf"label {label} of evaluation example 1 is out of range: .* in 0\.\.2"
    ):
        Classification().score(LOGITS[:2], splits_of([0, label]))


@pytest.mark.parametrize("split", ["train", "calibration"])
def test_label_out_of_range_is_found_in_every_split(split):
    good, bad = splits_of([0, 1]), splits_of([0, 7]).train
    with pytest.raises(InputError, match=f"label 7 of {split} example 1 is out of range"):
        Classification().score(LOGITS[:2], replace(good, **{split: bad}))


def test_label_out_of_range_is_named_where_it_has_a_name():
    with pytest.raises(InputError, match=r"label 3 \('owl'\)"):
        Classification().score(LOGITS[:1], splits_of([3], ("cat", "dog", "hen", "owl")))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (np.zeros((1, 3)), "row for each of 2 queries"),
        (np.zeros(2), r"needs \(examples, classes\)"),
        (np.zeros((2, 1)), r"needs \(examples, classes\)"),
        (np.array([[0.0, np.nan], [0.0, 1.0]]), "NaN or infinite outputs: 1 of 2 are, the first at query 0"),
    ],
)
def test_outputs_that_cannot_be_scored_are_refused(outputs, message):
    with pytest.raises(InputError, match=message):
        Classification().score(outputs, splits_of([0, 1]))


def test_top_k_above_the_number_of_classes_is_refused():
    with pytest.raises(InputError, match="top_k is 5, but the model has only 3 classes"):
        Classification(top_k=5).score(LOGITS, splits_of([0, 1, 1, 2]))


@pytest.mark.parametrize("targets", [None, np.array([0.5]), np.array([[1]])])
def test_queries_refuse_targets_that_are_not_classes(targets):
    examples = Examples({"x": np.zeros((1, 2))}, targets)
    with pytest.raises(InputError, match="classification needs"):
        Classification().queries(Splits(examples, examples, examples))


def test_queries_refuse_an_empty_split():
    with pytest.raises(InputError, match="the split is empty"):
        Classification().queries(splits_of(np.zeros(0, np.int64)))


@pytest.mark.parametrize(
    ("top_k", "error"), [(0, ValueError), ("5", TypeError), (True, TypeError), (1.0, TypeError)]
)
def test_top_k_must_be_a_positive_whole_number(top_k, error):
    with pytest.raises(error, match="top_k"):
        Classification(top_k=top_k)


@given(arrays(np.float32, (6, 4), elements=st.floats(-50, 50, width=32)), st.integers(1, 4))
def test_accuracy_and_confidence_grow_with_top_k(outputs, top_k):
    data = splits_of(np.arange(6) % 4)
    narrow, wide = Classification(1).score(outputs, data), Classification(top_k).score(outputs, data)
    assert (wide.per_example >= narrow.per_example).all()
    assert wide.confidence is not None
    assert narrow.confidence is not None
    assert (wide.confidence >= narrow.confidence - 1e-12).all()
    assert ((wide.confidence >= 0) & (wide.confidence <= 1)).all()
