"""Originals that are as good as a guess."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.evaluate.guessing import check_better_than_guessing
from flyweight.evaluate.statistics import bootstrap
from flyweight.tasks.classification import Classification
from flyweight.tasks.regression import Regression
from flyweight.tasks.similarity import Similarity


def notes(task, outputs, targets, columns=1):
    inputs = {f"x{i}": np.zeros((len(targets), 1)) for i in range(columns)}
    examples = Examples(inputs, np.asarray(targets))
    scores = task.score(np.asarray(outputs, dtype=np.float32), Splits(examples, examples, examples))
    return check_better_than_guessing(task, scores, bootstrap(task, scores))


def one_hot(answers, classes):
    return np.eye(classes)[np.asarray(answers)]


BALANCED = np.arange(200) % 4


def test_good_model_gets_no_note():
    assert notes(Classification(), one_hot(BALANCED, 4), BALANCED) == ()


@pytest.mark.parametrize(
    "answers",
    [(BALANCED + 1) % 4, np.zeros(200, dtype=int), np.random.default_rng(0).permutation(BALANCED)],
    ids=["classes in another order", "always the same", "at random"],
)
def test_classifier_that_guesses_is_refused_with_what_to_check(answers):
    with pytest.raises(InputError, match=r"no more than always giving .*--weights.*--classes"):
        notes(Classification(), one_hot(answers, 4), BALANCED)


def test_useful_model_on_rare_classes_is_only_noted():
    targets = np.array([1] * 10 + [0] * 190)
    answers = targets.copy()
    answers[8:22] ^= 1  # finds most of the rare class, at the price of as many false alarms
    (note,) = notes(Classification(), one_hot(answers, 2), targets)
    assert "top-1 accuracy is 0.93 on 200 examples" in note
    assert "(0.95)" in note


def test_data_on_which_every_answer_is_right_are_noted():
    targets = np.arange(20) % 2
    (note,) = notes(Classification(top_k=2), one_hot(targets, 2), targets)
    assert note == "one and the same answer is right for all examples, so top-2 accuracy says little"
    assert len(notes(Classification(), one_hot(targets * 0, 2), targets * 0)) == 1


def test_regression_worse_than_the_mean_is_refused():
    targets = np.linspace(0.0, 1.0, 50)
    assert notes(Regression(), targets + 0.01, targets) == ()
    with pytest.raises(InputError, match=r"R² is -2\.882"):
        notes(Regression(), np.full(50, 1.0), targets)


def test_embeddings_without_any_order_are_refused():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=100)
    outputs = generator.normal(size=(200, 4))
    task = Similarity("pairs")
    if task.metric(task.score(outputs, _pairs(targets))) > 0:
        outputs[100:] *= -1
    with pytest.raises(InputError, match="Spearman of cosine is -"):
        notes(task, outputs, targets, columns=2)


def _pairs(targets):
    examples = Examples({"a": np.zeros((len(targets), 1)), "b": np.zeros((len(targets), 1))}, targets)
    return Splits(examples, examples, examples)
