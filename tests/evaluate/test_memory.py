"""Peak memory of a real file in a real process, and the arithmetic of the probe."""

import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from flyweight.core.plan import Plan
from flyweight.errors import FlyweightError
from flyweight.evaluate.memory import _last_line_of, peak_rss_bytes
from flyweight.evaluate.memory_probe import _growth
from flyweight.run.artifact import Manifest, TensorSpec, describe_files, write_manifest

WIDTH = 3000  # a weight of 36 MB


def artifact(folder):
    weight = numpy_helper.from_array(np.ones((WIDTH, WIDTH), np.float32), "w")
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", WIDTH]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "model.onnx",
    )
    specs = [TensorSpec(name, "float32", ("n", WIDTH)) for name in ("x", "y")]
    manifest = Manifest(
        model="wide",
        status="exported",
        format="onnx",
        model_file="model.onnx",
        files=describe_files(folder, ["model.onnx"]),
        inputs=(specs[0],),
        outputs=(specs[1],),
        task="regression",
        plan=Plan("wide").to_dict(),
        parameters=WIDTH**2,
        macs=WIDTH**2,
        examples_interact=False,
        created="",
        flyweight="0",
    )
    write_manifest(folder, manifest)
    return folder


def test_peak_holds_the_weights_and_not_the_library(tmp_path):
    peak = peak_rss_bytes(
        artifact(tmp_path), "onnxruntime", {"x": np.ones((1, WIDTH), np.float32)}, threads=1
    )
    assert peak is None or 4 * WIDTH**2 < peak < 6 * 4 * WIDTH**2


def test_a_process_that_fails_is_one_sentence(tmp_path):
    with pytest.raises(FlyweightError, match=r"process of its own failed: .*absent"):
        peak_rss_bytes(tmp_path / "absent", "onnxruntime", {"x": np.ones((1, 1), np.float32)}, threads=1)


def test_a_process_that_is_killed_is_one_sentence(tmp_path):
    with pytest.raises(FlyweightError, match="ended by signal 9: the machine may lack the memory"):
        _last_line_of([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path)


def test_a_process_that_hangs_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("flyweight.evaluate.memory.TIMEOUT_S", 0.1)
    with pytest.raises(FlyweightError, match="took more than 0 s"):
        _last_line_of([sys.executable, "-c", "import time; time.sleep(9)"], tmp_path)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="runs must be at least 1"):
        peak_rss_bytes(tmp_path, "onnxruntime", {}, threads=1, runs=0)


@pytest.mark.parametrize(
    ("before", "peak_before", "peak_after", "growth"),
    [(10, 10, 25, 15), (10, 10, 10, 0), (10, 20, 25, 15), (10, 20, 20, None), (None, None, None, None)],
)
def test_growth_is_known_unless_an_earlier_peak_hides_it(before, peak_before, peak_after, growth):
    assert _growth(before, peak_before, peak_after) == growth
