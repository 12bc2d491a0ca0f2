"""Quality of an artifact: on all of new data, and on the held-out part of the data it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flyweight.core.plan import Plan
from flyweight.data.preprocessing import Preprocessing
from flyweight.data.steps import Rename
from flyweight.errors import InputError
from flyweight.evaluate.quality import (
    Quality,
    artifact_quality,
    is_artifact,
    model_quality,
    recorded_settings,
)
from flyweight.run.artifact import describe_files, read_manifest, write_manifest
from flyweight.run.manifest import Manifest, TensorSpec
from flyweight.settings_file import settings_from

onnx = pytest.importorskip("onnx")


def identity() -> bytes:
    shape = ("batch", 2)
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "same", ports[:1], ports[1:]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An artifact that answers with the larger of two numbers, said to be made from ``data.npz``."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(identity())
    x = np.random.default_rng(0).standard_normal((80, 2)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=x.argmax(axis=1))
    np.savez(tmp_path / "new.npz", x=x[:40], y=x[:40].argmax(axis=1))
    spec = TensorSpec("x", "float32", ("batch", 2))
    manifest = Manifest(
        model="same",
        status="exported",
        format="onnx",
        model_file="model.onnx",
        files=describe_files(folder, ["model.onnx"]),
        inputs=(spec,),
        outputs=(TensorSpec("y", "float32", ("batch", 2)),),
        task="classification",
        task_settings={"top_k": 1},
        preprocessing=Preprocessing((Rename("x"),)).to_dict(),
        plan=Plan("same").to_dict(),
        settings={"data": str(tmp_path / "data.npz"), "seed": 5, "inputs": [], "threads": 8},
        parameters=0,
        macs=0,
        examples_interact=False,
        created="2025-01-01T00:00:00Z",
        flyweight="0.1.0",
    )
    write_manifest(folder, manifest)
    return folder


def measured(made: Path, data: str, **more: object) -> Quality:
    given = {"model": "made", "out": "made", "data": str(made.parent / data), **more}
    quality = artifact_quality(made, settings_from(recorded_settings(made) | given))
    assert quality.estimate.value == 1.0
    return quality


def examples(made: Path, data: str, **more: object) -> tuple[int, int, str]:
    quality = measured(made, data, **more)
    return quality.examples, quality.of, quality.chosen


def test_new_data_are_evaluated_whole(made: Path):
    assert examples(made, "new.npz") == (40, 40, "")


def test_the_data_it_was_made_from_are_split_again(made: Path):
    assert examples(made, "data.npz") == (20, 80, "held out when it was made")


def test_another_split_of_the_data_it_was_made_from_is_told(made: Path):
    assert examples(made, "data.npz", seed=6) == (20, 80, "not those held out when it was made")


def test_data_that_are_split_are_evaluated_on_their_part(made: Path):
    with np.load(made.parent / "new.npz") as data:
        x, y = data["x"], data["y"]
    np.savez(made.parent / "parts.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    assert examples(made, "parts.npz") == (10, 10, "the evaluation part of the data")


def test_a_limit_is_told(made: Path):
    assert examples(made, "new.npz", evaluation_size=7) == (7, 40, "at most 7 asked for")


def test_a_model_is_evaluated_on_the_same_examples_as_an_artifact(made: Path):
    (made.parent / "same.py").write_text("from torch import nn\n\ndef same():\n    return nn.Identity()\n")
    values = {"model": f"{made.parent}/same.py:same", "out": ".", "data": str(made.parent / "new.npz")}
    quality = model_quality(settings_from(values))
    assert (quality.examples, quality.of, quality.chosen) == (40, 40, "")


def test_neighbours_are_looked_for_among_examples_that_are_not_evaluated(made: Path):
    assert examples(made, "new.npz", task="similarity", task_settings={}) == (
        (10, 40, "neighbours are looked for among the others")
    )


def test_no_class_vanishes_without_a_word(made: Path):
    write_manifest(made, replace(read_manifest(made), classes=("low", "high", "none")))
    quality = measured(made, "new.npz", evaluation_size=30)
    told = {name for name, *_ in (*quality.slices, *quality.few)}
    assert told == {"class low", "class high", "class none"}
    assert ("class none", 0) in quality.few


def test_the_code_of_its_own_metric_is_not_run_unasked(made: Path):
    write_manifest(made, replace(read_manifest(made), task="metric.py:mine", task_settings={}))
    with pytest.raises(InputError, match=r"not run unasked; .* give it with --task metric\.py:mine"):
        recorded_settings(made)
    assert "task" not in recorded_settings(made, task="classification")
    assert recorded_settings(made, task="metric.py:mine")["task"] == "metric.py:mine"


def test_settings_of_its_task_are_not_given_to_another(made: Path):
    assert "task_settings" not in recorded_settings(made, task="similarity")


def test_task_and_columns_are_those_of_the_manifest(made: Path):
    assert is_artifact(made)
    assert recorded_settings(made) == {"seed": 5, "task": "classification", "task_settings": {"top_k": 1}}


def test_an_artifact_without_preprocessing_takes_no_raw_data(made: Path):
    write_manifest(made, replace(read_manifest(made), preprocessing=None))
    with pytest.raises(InputError, match="ships no preprocessing"):
        examples(made, "new.npz")
