"""Tiny ONNX models and artifacts of them, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flyweight.core.plan import Plan
from flyweight.core.report import Artifact
from flyweight.run.artifact import Manifest, TensorSpec, describe_files, open_artifact, write_manifest

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def linear(axes: tuple[Any, ...] = ("batch", 2)) -> bytes:
    """``y = x @ WEIGHT``: float32 (batch, 2) to (batch, 3)."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return _model(
        node, [("x", TensorProto.FLOAT, axes)], [numpy_helper.from_array(WEIGHT, "w")], (axes[0], 3)
    )


def total(axes: tuple[Any, ...] = ("batch", 2)) -> bytes:
    """One number for the whole batch."""
    return _model(
        helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0), [("x", TensorProto.FLOAT, axes)], [], ()
    )


def lookup(location: str | None = None) -> bytes:
    """``y = TABLE[i]``: int64 (batch,) to (batch, 3); the table in the file ``location`` if named."""
    table = numpy_helper.from_array(TABLE, "table")
    if location is not None:
        table = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=TABLE.shape)
        table.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(TABLE.nbytes))):
            table.external_data.add(key=key, value=value)
    node = helper.make_node("Gather", ["table", "i"], ["y"])
    return _model(node, [("i", TensorProto.INT64, ("batch",))], [table], ("batch", 3))


def added() -> bytes:
    """``y = a + b``: both float32 (batch, 2)."""
    node = helper.make_node("Add", ["a", "b"], ["y"])
    shape = ("batch", 2)
    return _model(node, [("a", TensorProto.FLOAT, shape), ("b", TensorProto.FLOAT, shape)], [], shape)


def _model(node: Any, inputs: Any, weights: Any, output_shape: tuple[Any, ...]) -> bytes:
    graph = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def manifest(**changes: Any) -> Manifest:
    """Of `linear`, with changes."""
    whole = Manifest(
        model="tiny",
        status="shipped",
        format="onnx",
        model_file="model.onnx",
        files=changes.pop("files"),
        inputs=(TensorSpec("x", "float32", ("batch", 2)),),
        outputs=(TensorSpec("y", "float32", ("batch", 3)),),
        task="classification",
        task_settings={"top_k": 1},
        classes=("cat", "dog", "bird"),
        plan=Plan("tiny").to_dict(),
        settings={"model": "tiny.py:make", "budget": {"quality_drop": 0.01, "storage_bytes": None}},
        versions={"onnx": "1.0"},
        parameters=6,
        macs=6,
        examples_interact=False,
        created="2025-01-01T00:00:00Z",
        flyweight="0.1.0",
    )
    return replace(whole, **changes)


def write_artifact(folder: Path, model: bytes | None = None, **changes: Any) -> Path:
    """A folder with ``model.onnx`` (by default `linear`) and its manifest."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(linear() if model is None else model)
    names = changes.pop("file_names", ("model.onnx",))
    write_manifest(folder, manifest(files=describe_files(folder, names), **changes))
    return folder


def opened(folder: Path, model: bytes, extra: Mapping[str, bytes] | None = None) -> Artifact:
    """The artifact of a model file and further files beside it."""
    folder.mkdir(exist_ok=True)
    for name, data in (extra or {}).items():
        (folder / name).write_bytes(data)
    return open_artifact(write_artifact(folder, model, file_names=("model.onnx", *(extra or {}))))
