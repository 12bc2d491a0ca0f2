"""Running, scoring and comparing models that are plain functions."""

import numpy as np
import pytest

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.evaluate.evaluate import Evaluated, compare, evaluate, order_by_length
from flyweight.tasks.classification import Classification


def lengths(columns):
    """The characters of each text, as the one input."""
    return {"x": np.array([len(text) for text in columns["text"]], np.float32)}


def odd_or_even(inputs):
    odd = inputs["x"] % 2
    return [np.stack([1 - odd, odd], axis=1)]


def splits_of(texts):
    examples = Examples({"text": texts}, np.array([len(t) % 2 for t in texts]))
    return Splits(examples, examples, examples)


TEXTS = ["a" * n for n in (5, 1, 4, 2, 2, 9, 3)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_evaluate_keeps_the_order_of_the_examples(batch_size):
    scores = evaluate(odd_or_even, lengths, Classification(), splits_of(TEXTS), batch_size=batch_size)
    assert scores.predictions.tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert Classification().metric(scores) == 1


def test_texts_of_like_length_share_a_batch():
    seen = []

    def session(inputs):
        seen.append(inputs["x"].tolist())
        return odd_or_even(inputs)

    evaluate(session, lengths, Classification(), splits_of(TEXTS), batch_size=3)
    assert seen == [[1, 2, 2], [3, 4, 5], [9]]


def test_examples_of_several_texts_are_ordered_by_all_their_characters():
    examples = Examples({"one": ["aaaa", "a", "", "aa"], "other": ["", "bb", "b", "bb"], "x": np.arange(4.0)})
    assert order_by_length(examples).tolist() == [2, 1, 0, 3]


def test_arrays_are_run_in_their_order():
    examples = Examples({"x": np.arange(4.0)}, np.array([0, 1, 0, 1]))
    seen = []

    def session(inputs):
        seen.extend(inputs["x"].tolist())
        return odd_or_even(inputs)

    evaluate(
        session, lambda columns: columns, Classification(), Splits(examples, examples, examples), batch_size=2
    )
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (lambda inputs: [], "no output"),
        (lambda inputs: [np.float32(1)], "of one shape for all batches"),
        (lambda inputs: [np.zeros((2, int(inputs["x"][0])))], "of one shape for all batches"),
        (lambda inputs: [np.zeros((1, 2))], "axis 0 must be the batch"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(session, message):
    with pytest.raises(InputError, match=message):
        evaluate(session, lengths, Classification(), splits_of(TEXTS), batch_size=2)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(odd_or_even, lengths, Classification(), splits_of(TEXTS), batch_size=0)


def test_compare_sets_both_sides_against_each_other():
    texts = ["a" * (n % 7 + 1) for n in range(70)]
    data = splits_of(texts)
    right = evaluate(odd_or_even, lengths, Classification(), data)
    wrong = evaluate(lambda i: [odd_or_even(i)[0][:, ::-1]], lengths, Classification(), data)
    found = compare(
        Classification(),
        Evaluated(scores=right, samples_s=[[2.0] * 30] * 2, storage_bytes=100),
        Evaluated(scores=wrong, samples_s=[[1.0] * 30] * 2, storage_bytes=40),
        data.evaluation,
    )
    assert (found.size_ratio, found.speedup.value, found.quality_drop.value) == (2.5, 2, 1)
    assert (found.agreement, found.test.lost, found.examples) == (0, 70, 70)
    assert [s.examples for s in found.slices] == [30, 40]


def test_a_side_without_bytes_is_refused():
    with pytest.raises(ValueError, match="storage_bytes"):
        Evaluated(
            scores=evaluate(odd_or_even, lengths, Classification(), splits_of(TEXTS)),
            samples_s=[],
            storage_bytes=0,
        )
