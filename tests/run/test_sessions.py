"""What holds of every runtime that loads artifacts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_artifacts import TABLE, WEIGHT, added, linear, lookup, opened, write_artifact

from flyweight.core.protocols import Runtime
from flyweight.core.report import Artifact
from flyweight.errors import ArtifactError, InputError
from flyweight.run.manifest import TensorSpec
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.run.openvino import OpenVinoRuntime

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)
runtimes = pytest.mark.parametrize(
    "runtime",
    [OnnxRuntime(), pytest.param(OpenVinoRuntime(), marks=needs_openvino)],
    ids=["onnxruntime", "openvino"],
)


def x(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def damaged(folder: Path, data: bytes) -> Artifact:
    return Artifact(
        path=folder, format="onnx", model_file="model.onnx", files={"model.onnx": len(data)}, sha256=""
    )


@runtimes
def test_a_runtime_keeps_the_protocol(runtime: Runtime) -> None:
    assert isinstance(runtime, Runtime)
    assert runtime.formats == ("onnx",)


@runtimes
@pytest.mark.parametrize("threads", [0, 1])
def test_a_session_computes_the_model_for_any_batch(runtime: Runtime, tmp_path: Path, threads: int) -> None:
    session = runtime.load(opened(tmp_path, linear()), threads)
    for batch in (1, 5, 1):
        (y,) = session({"x": x(batch, 2)})
        np.testing.assert_allclose(y, x(batch, 2) @ WEIGHT)


@runtimes
def test_outputs_are_not_changed_by_the_next_call(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.load(opened(tmp_path, linear()), 1)
    (first,) = session({"x": x(3, 2)})
    session({"x": -x(3, 2)})
    np.testing.assert_allclose(first, x(3, 2) @ WEIGHT)


@runtimes
def test_views_and_read_only_arrays_are_taken(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.load(opened(tmp_path, linear()), 1)
    frozen = x(4, 2)
    frozen.flags.writeable = False
    for view in (x(8, 2)[::2], x(4, 2)[::-1], x(2, 4).T, frozen):
        np.testing.assert_allclose(session({"x": view})[0], view @ WEIGHT)


@runtimes
def test_a_session_says_what_it_takes_and_gives(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.load(opened(tmp_path, added()), 1)
    assert session.input_names == ("a", "b")  # type: ignore[attr-defined]  # of our sessions, not of the protocol
    (output,) = session.outputs  # type: ignore[attr-defined]
    assert (output.name, output.dtype, output.shape[1]) == ("y", "float32", 2)


@runtimes
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": x(1, 2), "z": x(1, 2)}, "there is no input 'z'"),
        ({"x": x(1, 3)}, "input 'x' must be float32"),
        ({"x": x(2)}, "input 'x' must be float32"),
        ({"x": np.ones((1, 2))}, "got float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    runtime: Runtime, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        runtime.load(opened(tmp_path, linear()), 1)(arrays)


@runtimes
@pytest.mark.parametrize("data", [b"", b"garbage garbage", linear()[:-20]], ids=["empty", "garbage", "cut"])
def test_a_damaged_file_is_named_in_one_line(
    runtime: Runtime, tmp_path: Path, capfd: pytest.CaptureFixture[str], data: bytes
) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"cannot load .*model\.onnx: ") as caught:
        runtime.load(damaged(tmp_path, data), 1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@runtimes
def test_weights_in_a_file_of_the_folder_are_read(runtime: Runtime, tmp_path: Path) -> None:
    session = runtime.load(opened(tmp_path, lookup("table.bin"), {"table.bin": TABLE.tobytes()}), 1)
    np.testing.assert_array_equal(session({"i": np.array([2, 0])})[0], TABLE[[2, 0]])


@runtimes
@pytest.mark.parametrize("location", ["../table.bin", "absolute", "sub/../../table.bin", "link.bin"])
def test_weights_outside_of_the_folder_are_refused(runtime: Runtime, tmp_path: Path, location: str) -> None:
    outside, folder = tmp_path / "table.bin", tmp_path / "out"
    outside.write_bytes(TABLE.tobytes())
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"cannot load|reads weights from link\.bin"):
        runtime.load(opened(folder, lookup(str(outside) if location == "absolute" else location)), 1)


@runtimes
def test_something_else_than_an_artifact_is_a_type_error(runtime: Runtime) -> None:
    from torch import ones
    from torch.nn import Identity

    from flyweight.model import Model

    with pytest.raises(TypeError, match="loads artifacts, got Model"):
        runtime.load(Model("identity", Identity(), {"input": ones(1)}), 1)


def test_onnxruntime_names_dimensions(tmp_path: Path) -> None:
    session = OnnxRuntime().load(opened(tmp_path, lookup()), 1)
    assert session.inputs == (TensorSpec("i", "int64", ("batch",)),)
    assert session.outputs == (TensorSpec("y", "float32", ("batch", 3)),)


def test_onnxruntime_names_a_dimension_without_a_name_with_a_question_mark(tmp_path: Path) -> None:
    session = OnnxRuntime().load(opened(tmp_path, linear((None, 2))), 1)
    assert session.inputs[0].shape == ("?", 2)


def test_onnxruntime_refuses_an_index_out_of_range_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = OnnxRuntime().load(opened(tmp_path, lookup()), 1)
    with pytest.raises(InputError, match="idx=99"):
        session({"i": np.array([99])})
    assert capfd.readouterr().err == ""


def test_onnxruntime_is_loaded_without_its_telemetry(tmp_path: Path) -> None:
    folder, temporary = write_artifact(tmp_path / "artifact"), tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import os; from flyweight.run.artifact import open_artifact;"
        "from flyweight.run.onnxruntime import OnnxRuntime;"
        f"OnnxRuntime().load(open_artifact({str(folder)!r}), 1);"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    # What sends it leaves the mark of its session there.
    subprocess.run([sys.executable, "-c", code], env=environment | {"TMPDIR": str(temporary)}, check=True)
    assert list(temporary.iterdir()) == []
