"""Weights of few bits in the exported file, and the kernels that compute with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.core.report import Artifact
from flyweight.export.check import check_parity
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.testing.strategies import batches_for

SLACK_BYTES = 400


def network() -> Model:
    """An embedding, a convolution and two linear layers."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 32)
            self.mix = nn.Conv1d(32, 24, 3, padding=1)
            self.wide, self.head = nn.Linear(24, 64), nn.Linear(64, 8)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.mix(self.table(tokens).transpose(1, 2)))
            return self.head(torch.relu(self.wide(x.mean(2))))

    torch.manual_seed(0)
    return Model("small", Small(), {"tokens": torch.randint(40, (1, 6))})


def operators(folder: Path, technique: str, **settings: Any) -> Counter[str]:
    """Of the graph that ONNX Runtime runs, once size and outputs are what they should be."""
    import onnxruntime

    model = network()
    result = apply(model, plan_for(profile(model), technique, settings), batches_for(model, size=16))
    path = folder / "model.onnx"
    OnnxExporter().export(result, path)
    size = path.stat().st_size
    assert abs(size - OnnxExporter().lower(profile(result)).storage_bytes) <= SLACK_BYTES
    files = {"model.onnx": size}
    artifact = Artifact(path=folder, format="onnx", model_file="model.onnx", files=files, sha256="")
    check_parity(result, artifact, batches_for(model, count=1)[0])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize(
    ("technique", "settings"),
    [
        ("weight_only", {"bits": 4}),
        ("weight_only", {"bits": 2, "symmetric": False}),
        ("weight_only", {"bits": 4, "group_size": 16}),
        ("binary", {}),
        ("normal_float", {}),
    ],
)
def test_narrow_weights_run_on_integer_kernels_under_static_activations(
    technique: str, settings: dict[str, Any], tmp_path: Path
):
    found = operators(tmp_path, f"{technique}+static_activations", **settings)
    assert (found["QLinearConv"], found["QGemm"]) == (1, 2)
    assert not {"Conv", "Gemm", "MatMul"} & set(found)


@pytest.mark.parametrize("granularity", ["tensor", "token"])
@pytest.mark.parametrize("settings", [{"bits": 4}, {"bits": 3, "group_size": 16, "symmetric": False}])
def test_narrow_weights_run_on_integer_kernels_under_dynamic_activations(
    granularity: str, settings: dict[str, Any], tmp_path: Path
):
    technique = "weight_only+dynamic_activations"
    found = operators(tmp_path, technique, activation_granularity=granularity, **settings)
    kernels = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger")
    assert sum(found[name] for name in kernels) == 2
    assert not {"Gemm", "MatMul"} & set(found)


@pytest.mark.parametrize(
    ("technique", "settings"),
    [
        ("weight_only", {"bits": 16}),
        ("weight_only", {"bits": 4, "group_size": 7}),
        ("codebook", {"bits": 3}),
        ("codebook", {"bits": 2, "granularity": "tensor"}),
        ("normal_float", {"bits": 3, "group_size": 20}),
        ("vector", {"bits": 4, "dimension": 5}),
        ("float_storage", {"format": "bfloat16"}),
        ("float_storage", {"format": "float8_e4m3fn"}),
    ],
)
def test_other_forms_are_floats_once_they_are_loaded(
    technique: str, settings: dict[str, Any], tmp_path: Path
):
    found = operators(tmp_path, technique, **settings)
    assert not {"DequantizeLinear", "Cast", "MatMulNBits", "GatherElements", "Slice"} & set(found)


@pytest.mark.parametrize(
    "settings", [{"bits": 2, "group_size": 16}, {"bits": 4, "symmetric": False}, {"bits": 3}]
)
def test_linear_layers_and_embeddings_run_on_packed_codes(settings: dict[str, Any], tmp_path: Path):
    found = operators(tmp_path, "weight_only", **settings)
    assert (found["MatMulNBits"], found["GatherBlockQuantized"]) == (2, 1)


@pytest.mark.parametrize("calibrated", [True, False])
def test_products_are_rounded_only_where_typical_inputs_show_that_it_does_no_harm(
    calibrated: bool, tmp_path: Path
):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 64))
    inputs = torch.randn(64, 256)
    inputs[:, ::32] *= 300  # one of each block, which leaves few of the others' digits
    with torch.no_grad():
        module[0].weight[:, ::32] /= 300
    model = Model("uneven", module, {"input": torch.zeros(1, 256)})  # tells nothing of that
    settings = {"bits": 4, "granularity": "group", "group_size": 32}
    plan = Plan("uneven", (Decision("weight_only", ("0",), Stage.QUANTIZE, settings),))
    result = apply(model, plan, [{"input": inputs}] if calibrated else [])
    OnnxExporter().export(result, tmp_path / "model.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = torch.from_numpy(session.run(None, {"input": inputs.numpy()})[0])
    wanted = result.outputs({"input": inputs})[0]
    assert (found - wanted).norm() < 0.02 * wanted.norm()
