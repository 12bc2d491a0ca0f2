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
from flyweight.evaluate.quality import artifact_quality, is_artifact, recorded_settings
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


def examples(made: Path, data: str) -> int:
    values = recorded_settings(made) | {"model": "made", "out": "made", "data": str(made.parent / data)}
    quality = artifact_quality(made, settings_from(values))
    assert quality.estimate.value == 1.0
    return quality.examples


def test_new_data_are_evaluated_whole(made: Path):
    assert examples(made, "new.npz") == 40


def test_the_data_it_was_made_from_are_split_again(made: Path):
    assert examples(made, "data.npz") == 20


def test_task_and_columns_are_those_of_the_manifest(made: Path):
    assert is_artifact(made)
    assert recorded_settings(made) == {"seed": 5, "task": "classification", "task_settings": {"top_k": 1}}


def test_an_artifact_without_preprocessing_takes_no_raw_data(made: Path):
    write_manifest(made, replace(read_manifest(made), preprocessing=None))
    with pytest.raises(InputError, match="ships no preprocessing"):
        examples(made, "new.npz")
