from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_artifacts import WEIGHT, lookup, total, write_artifact

from flyweight.data.examples import Examples
from flyweight.data.preprocessing import Preprocessing
from flyweight.data.steps import Rename
from flyweight.errors import ArtifactError, InputError, UnsupportedError
from flyweight.run.manifest import TensorSpec
from flyweight.run.predict import predict, write_answers

X = np.array([[1, 0], [0, -1], [2, 2]], dtype=np.float32)


def test_predict_answers_in_the_words_of_the_task(tmp_path: Path) -> None:
    answers = predict(write_artifact(tmp_path), Examples({"x": X}))
    assert answers["label"] == ["bird", "cat", "bird"]
    assert len(answers["probability"]) == 3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_answers_do_not_depend_on_the_batch_size(tmp_path: Path, batch_size: int) -> None:
    folder = write_artifact(tmp_path, task="file.py:metric", task_settings={})
    answers = predict(folder, Examples({"x": X}), batch_size=batch_size)
    np.testing.assert_allclose(np.column_stack([answers[f"output_{i}"] for i in range(3)]), X @ WEIGHT)


def test_predict_prepares_raw_columns_and_leaves_out_what_the_model_does_not_take(tmp_path: Path) -> None:
    preprocessing = Preprocessing((Rename("x"),)).to_dict()
    folder = write_artifact(tmp_path, preprocessing=preprocessing, task="regression", task_settings={})
    answers = predict(folder, Examples({"pixels": X.astype(np.float64)}))
    np.testing.assert_allclose(answers["value_1"], (X @ WEIGHT)[:, 1])


def test_columns_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    predict(write_artifact(tmp_path), Examples({"x": X, "note": ["a", "b", "c"]}))


def test_the_file_of_each_example_comes_first(tmp_path: Path) -> None:
    examples = Examples({"x": X}, columns={"file": np.array(["b.png", "c/a.png", "c/d.png"])})
    answers = predict(write_artifact(tmp_path), examples)
    assert list(answers) == ["file", "label", "probability"]
    assert answers["file"] == ["b.png", "c/a.png", "c/d.png"]


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "npz"])
def test_every_format_names_the_file_of_an_answer(tmp_path: Path, suffix: str) -> None:
    examples = Examples({"x": X[:2]}, columns={"file": np.array(["b.png", "a.png"])})
    write_answers(tmp_path / f"answers.{suffix}", predict(write_artifact(tmp_path / "made"), examples))
    content = (tmp_path / f"answers.{suffix}").read_bytes()
    assert content.index(b"file") < content.index(b"label")
    if suffix == "npz":
        assert np.load(tmp_path / "answers.npz")["file"].tolist() == ["b.png", "a.png"]
    else:
        assert content.index(b"b.png") < content.index(b"a.png")


PAIR = Examples({"x": X, "other": np.array([[2, 0], [0, 1], [2, -2]], dtype=np.float32)})


@pytest.mark.parametrize("batch_size", [2, 32])
def test_similarity_answers_pairs_with_the_cosine_of_their_embeddings(
    tmp_path: Path, batch_size: int
) -> None:
    answers = predict(
        write_artifact(tmp_path, task="similarity", task_settings={}), PAIR, batch_size=batch_size
    )
    first, second = (np.asarray(values) @ WEIGHT for values in PAIR.inputs.values())
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert list(answers) == ["similarity"]
    np.testing.assert_allclose(answers["similarity"], cosines, rtol=1e-5)


def test_similarity_answers_single_examples_with_their_embedding(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path, task="similarity", task_settings={})
    assert list(predict(folder, Examples({"x": X}))) == ["e0", "e1", "e2"]


def test_predict_never_runs_a_file_named_by_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("raise SystemExit('it ran')")
    folder = write_artifact(tmp_path / "out", task="evil.py:metric", task_settings={})
    assert list(predict(folder, Examples({"x": X}))) == ["output_0", "output_1", "output_2"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Examples({"y": X}), "input 'x' is missing"),
        (Examples({"x": X[:0]}), "no examples"),
        (Examples({"x": X[:, :1]}), "input 'x' must be float32"),
        (Examples({"x": [[1.0, 2.0], [1.0]]}), "no arrays of one shape"),
    ],
)
def test_predict_refuses_examples_that_do_not_fit(tmp_path: Path, inputs: Examples, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(write_artifact(tmp_path), inputs)


def test_predict_refuses_a_damaged_artifact(tmp_path: Path) -> None:
    (write_artifact(tmp_path) / "model.onnx").write_bytes(lookup())
    with pytest.raises(ArtifactError, match="is damaged"):
        predict(tmp_path, Examples({"x": X}))


def test_predict_refuses_a_model_that_gives_no_row_an_example(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path, total(), outputs=(TensorSpec("y", "float32", ()),))
    with pytest.raises(ArtifactError, match="not one row each"):
        predict(folder, Examples({"x": X}))


def test_predict_refuses_a_runtime_of_other_formats(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="runtime pytorch does not run onnx files"):
        predict(write_artifact(tmp_path), Examples({"x": X}), runtime="pytorch")


def test_predict_refuses_an_unknown_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="juggling"):
        predict(write_artifact(tmp_path, task="juggling"), Examples({"x": X}))


@pytest.mark.parametrize("wrong", [{"runtime": "abacus"}, {"batch_size": 0}, {"threads": -1}])
def test_predict_refuses_wrong_arguments(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"abacus|batch_size|threads"):
        predict(write_artifact(tmp_path), Examples({"x": X}), **wrong)


def test_predicting_does_not_load_torch(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from flyweight.data.examples import Examples;"
        "from flyweight.run.predict import predict;"
        f"predict({str(write_artifact(tmp_path))!r}, Examples({{'x': np.ones((1, 2), np.float32)}}));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
