"""A metric of the user's own."""

import numpy as np
import pytest

from flyweight.core.protocols import Task
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.custom import Custom

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Unused:
    value: int = 0

def closeness(outputs, targets):
    return -abs(outputs[:, 0] - targets)

def breaks(outputs, targets):
    raise RuntimeError("no such thing\\nsecond line")

def flat(outputs, targets):
    return 1.0

def hollow(outputs, targets):
    return targets * float("nan")

number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "metrics.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def data():
    examples = Examples({"x": np.zeros((2, 1))}, np.array([1.0, 3.0]))
    return Splits(examples, examples, examples)


def test_metric_is_the_mean_of_what_the_function_returns(file):
    task = Custom(f"{file}:closeness")
    scores = task.score(np.array([[1.0], [1.0]]), data())
    assert scores.per_example.tolist() == [0.0, -2.0]
    assert task.metric(scores) == -1.0
    assert task.metric_name == "closeness"
    assert isinstance(task, Task)


def test_an_exception_of_the_function_is_told_in_one_line(file):
    with pytest.raises(
        InputError, match=r"failed: RuntimeError: no such thing second line \(metrics\.py, line 13"
    ):
        Custom(f"{file}:breaks").score(np.zeros((2, 1)), data())


@pytest.mark.parametrize(
    ("name", "message"), [("flat", "one number an example"), ("hollow", "NaN or infinity for example 0")]
)
def test_what_is_not_one_finite_number_an_example_is_refused(file, name, message):
    with pytest.raises(InputError, match=message):
        Custom(f"{file}:{name}").score(np.zeros((2, 1)), data())


@pytest.mark.parametrize(("name", "message"), [("number", "is no function"), ("absent", "has no 'absent'")])
def test_what_is_not_a_function_is_refused(file, name, message):
    with pytest.raises(InputError, match=message):
        Custom(f"{file}:{name}")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*absent\.py"):
        Custom(f"{tmp_path / 'absent.py'}:metric")


@pytest.mark.parametrize("spec", ["metrics.py", "metrics/f.txt:f", "metrics.py:"])
def test_another_form_of_name_is_refused(spec):
    with pytest.raises(InputError, match=r"file\.py:function"):
        Custom(spec)


def test_a_file_that_cannot_be_run_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"importing .*broken\.py raised SyntaxError"):
        Custom(f"{tmp_path / 'broken.py'}:f")


def test_unlabelled_data_are_refused(file):
    examples = Examples({"x": np.zeros((2, 1))})
    with pytest.raises(InputError, match="name the target column"):
        Custom(f"{file}:closeness").queries(Splits(examples, examples, examples))


def test_answers_are_the_outputs(file):
    assert Custom(f"{file}:flat").answers(np.array([[1.0], [2.0]]), []) == {"output": [1.0, 2.0]}
    assert list(Custom(f"{file}:flat").answers(np.zeros((1, 2)), [])) == ["output_0", "output_1"]
