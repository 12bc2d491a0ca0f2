"""How many examples a call quality is measured on, and what one timed call is given."""

from __future__ import annotations

import numpy as np
import pytest

from flyweight.data.examples import Examples, Splits
from flyweight.evaluate import measurement
from flyweight.evaluate.measurement import Conditions, scored, timed_inputs
from flyweight.run.artifact import open_artifact
from flyweight.tasks.classification import Classification
from tests.run.small_artifacts import write_artifact

CONDITIONS = Conditions(runtime="onnxruntime", threads=1, batch_size=1, seconds=1.0)


def splits(count):
    generator = np.random.default_rng(0)
    examples = Examples(
        {"x": generator.normal(size=(count, 2)).astype(np.float32)},
        targets=generator.integers(3, size=count),
        classes=("cat", "dog", "bird"),
    )
    return Splits(examples, examples, examples)


@pytest.mark.parametrize(("interact", "sizes"), [(False, [32, 8]), (True, [1] * 40)])
def test_quality_is_measured_on_one_example_a_call_where_examples_interact(tmp_path, interact, sizes):
    given = []

    def preprocessing(columns):
        given.append(len(columns["x"]))
        return columns

    artifact = open_artifact(write_artifact(tmp_path / "small", examples_interact=interact))
    scores = scored(artifact, CONDITIONS, preprocessing, Classification(), splits(40))
    assert given == sizes
    assert len(scores) == 40


@pytest.mark.parametrize(("after", "times"), [(0.5, 1), (2.0, 1), (None, 3)])
def test_files_are_timed_again_only_while_it_is_open_which_is_slower(monkeypatch, after, times):
    made = []

    def interleave(loads, *, seconds):
        made.append(seconds)
        unsteady = [[1.0], [1.6], [0.9]] if after is None else [[after]] * 3
        return [[[1.0]] * 3, unsteady]

    monkeypatch.setattr(measurement, "interleave", interleave)
    samples = measurement._timed([], 1.0)
    assert len(made) == times
    assert [len(sessions) for sessions in samples] == [3 * times] * 2


def test_timed_call_takes_texts_of_middling_length():
    texts = ["a" * length for length in (1, 9, 5, 5, 5, 1, 9)]
    examples = Examples({"text": texts}, targets=np.zeros(7, dtype=np.int64), classes=("only",))
    found = timed_inputs(
        lambda columns: {name: np.array(values) for name, values in columns.items()},
        Classification(),
        Splits(examples, examples, examples),
        2,
    )
    assert found["text"].tolist() == ["aaaaa", "aaaaa"]
