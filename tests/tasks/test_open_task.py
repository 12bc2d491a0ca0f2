"""From names to tasks."""

import numpy as np
import pytest

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.classification import Classification
from flyweight.tasks.custom import Custom
from flyweight.tasks.open import open_task, settle
from flyweight.tasks.regression import Regression
from flyweight.tasks.similarity import Similarity


def test_a_name_of_the_catalog_opens_the_task_with_its_settings():
    assert open_task("classification", {"top_k": 5}) == Classification(5)
    assert open_task("regression", {}) == Regression()


def test_a_function_opens_a_custom_task(tmp_path):
    (tmp_path / "metrics.py").write_text("def f(outputs, targets):\n    return targets\n", encoding="utf-8")
    assert isinstance(open_task(f"{tmp_path / 'metrics.py'}:f", {}), Custom)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("clasification", {}, "known: classification, regression, similarity; or name your own"),
        ("classification", {"topk": 5}, "has no setting topk; it takes top_k"),
        ("classification", {"top_k": 0}, "top_k must be at least 1, got 0"),
        ("classification", {"top_k": "5"}, "top_k"),
        ("similarity", {"measure": "near"}, "measure must be one of"),
        ("regression", {"top_k": 1}, "it takes none"),
        ("metrics.py:f", {"top_k": 1}, "it takes none"),
        ("metrics.py:f", {}, r"there is no file metrics\.py"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_sentence(spec, settings, message):
    with pytest.raises(InputError, match=message):
        open_task(spec, settings)


def test_settle_decides_similarity_and_leaves_the_rest():
    examples = Examples({"a": ["x"], "b": ["y"]}, np.array([1.0]))
    data = Splits(examples, examples, examples)
    assert settle(Similarity(), data) == Similarity("pairs")
    assert settle(Regression(), data) == Regression()
