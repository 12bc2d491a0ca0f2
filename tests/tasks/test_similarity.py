"""Similarity of pairs and of neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from flyweight.core.protocols import Task
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.similarity import Similarity, mean_cosine, rank_agreement


def pairs(first, second, targets, classes=()):
    examples = Examples({"a": first, "b": second}, np.asarray(targets), classes)
    return Splits(examples, examples, examples)


def neighbours(evaluation, train):
    parts = [
        Examples({"text": [f"{side}{i}" for i in range(len(y))]}, np.asarray(y))
        for side, y in (("e", evaluation), ("t", train))
    ]
    return Splits(train=parts[1], calibration=parts[1], evaluation=parts[0])


def test_similarity_is_a_task():
    assert isinstance(Similarity(), Task)


def test_pairs_ask_all_first_then_all_second():
    queries = Similarity().queries(pairs(["a0", "a1"], ["b0", "b1"], [0.0, 1.0]))
    assert queries.inputs == {"a": ["a0", "a1", "b0", "b1"]}


def test_pairs_of_arrays_are_joined_on_axis_0():
    queries = Similarity().queries(pairs(np.zeros((2, 3)), np.ones((2, 3)), [0.0, 1.0]))
    assert np.asarray(queries.inputs["a"]).shape == (4, 3)


def test_metric_of_pairs_is_scipys_spearman():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 50, 8))
    targets = generator.integers(0, 6, 50).astype(float)
    data = pairs(first, second, targets)
    scores = Similarity().score(np.concatenate([first, second]), data)
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert scores.predictions == pytest.approx(cosines)
    assert Similarity().metric(scores) == pytest.approx(spearmanr(cosines, targets).statistic)


def test_mean_of_per_example_is_the_metric():
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(2, 40, 4)).astype(np.float32)
    scores = Similarity().score(
        np.concatenate([first, second]), pairs(first, second, generator.normal(size=40))
    )
    assert scores.per_example.mean() == pytest.approx(Similarity().metric(scores))
    assert scores.per_example.max() <= 1


@given(arrays(np.float64, 12, elements=st.integers(0, 4)), arrays(np.float64, 12, elements=st.integers(0, 4)))
def test_rank_agreement_averages_ties_as_scipy_does(predictions, targets):
    rho = rank_agreement(predictions, targets).mean()
    if len(set(predictions)) > 1 and len(set(targets)) > 1:
        assert rho == pytest.approx(spearmanr(predictions, targets).statistic, abs=1e-12)
    else:
        assert rho == 0


def test_classes_whose_names_are_numbers_serve_as_scores():
    first = np.eye(3)
    data = pairs(first, first[[0, 0, 0]], np.array([2, 1, 0]), classes=("0", "2", "5"))
    assert Similarity().score(np.concatenate([first, first[[0, 0, 0]]]), data).targets.tolist() == [5, 2, 0]


def test_zero_embeddings_have_cosine_0():
    data = pairs(np.zeros((2, 1)), np.zeros((2, 1)), [0.0, 1.0])
    scores = Similarity().score(np.zeros((4, 3), np.float32), data)
    assert scores.predictions.tolist() == [0, 0]
    assert Similarity().metric(scores) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosines_do_not_depend_on_the_scale_of_the_embeddings(scale):
    first = np.array([[1.0, 1.0], [1.0, 0.0]], np.float32) * np.float32(scale)
    data = pairs(np.zeros((2, 1)), np.zeros((2, 1)), [0.0, 1.0])
    scores = Similarity().score(np.concatenate([first, first]), data)
    assert scores.predictions == pytest.approx(1, abs=1e-6)


def test_neighbours_ask_evaluation_then_train():
    assert Similarity().queries(neighbours([0], [1, 0])).inputs["text"] == ["e0", "t0", "t1"]


def test_neighbours_answer_the_class_of_the_nearest_by_cosine():
    outputs = np.array([[2.0, 0.1], [0.1, 5.0], [1.0, 1.1], [9.0, 0.0], [0.0, 0.1]], np.float32)
    scores = Similarity().score(outputs, neighbours([4, 7, 4], [4, 7]))
    assert scores.predictions.tolist() == [4, 7, 7]
    assert Similarity().metric(scores) == pytest.approx(2 / 3)
    assert scores.correct is not None


def test_settled_names_the_one_metric():
    assert Similarity().settled(pairs(["a"], ["b"], [1.0])).metric_name == "Spearman of cosine"
    assert Similarity().settled(neighbours([0], [0])).metric_name == "1-nearest-neighbour accuracy"
    assert [Similarity(m).class_targets for m in ("auto", "pairs", "neighbours")] == [None, False, True]


@pytest.mark.parametrize(
    ("measure", "data"),
    [("pairs", neighbours([0], [0])), ("neighbours", pairs(["a"], ["b"], [1.0]))],
)
def test_data_of_the_other_measure_are_refused(measure, data):
    with pytest.raises(InputError, match=f"'{measure}' does not fit columns"):
        Similarity(measure).queries(data)


def test_neighbours_without_train_examples_are_refused():
    with pytest.raises(InputError, match="needs train examples"):
        Similarity().queries(neighbours([0], np.zeros(0, np.int64)))


@pytest.mark.parametrize("outputs", [np.zeros((2, 5, 3), np.float32), np.zeros((2, 3), np.int64)])
def test_outputs_that_are_no_embeddings_are_refused(outputs):
    with pytest.raises(InputError, match="one embedding a query"):
        Similarity().score(outputs, neighbours([0], [0]))


def test_answers_hold_the_embedding():
    assert Similarity().answers(np.array([[1.0, 2.0], [3.0, 4.0]]), []) == {
        "e0": [1.0, 3.0],
        "e1": [2.0, 4.0],
    }


def test_unknown_measure_is_refused():
    with pytest.raises(ValueError, match="measure must be one of"):
        Similarity("near")


@given(arrays(np.float32, (3, 4), elements=st.floats(-1e6, 1e6, width=32)))
def test_mean_cosine_with_itself_is_the_fraction_of_rows_that_are_not_zero(rows):
    assert mean_cosine(rows, rows) == pytest.approx(rows.any(axis=1).mean())
    assert mean_cosine(rows, -rows) == pytest.approx(-rows.any(axis=1).mean())


def test_mean_cosine_refuses_different_shapes():
    with pytest.raises(ValueError, match="same"):
        mean_cosine(np.zeros((2, 3)), np.zeros((2, 4)))
