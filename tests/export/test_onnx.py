"""What the exported file holds, and what ONNX Runtime makes of it."""

from __future__ import annotations

import string
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from flyweight.apply import apply, predicted
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.core.report import Artifact
from flyweight.errors import ParityError, UnsupportedError
from flyweight.export import onnx as exporter
from flyweight.export.check import check_parity
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.testing.strategies import (
    batches_for,
    perceptron,
    residual_network,
    signal_network,
    text_network,
)

INT8, INT4, INT2 = onnx.TensorProto.INT8, onnx.TensorProto.INT4, onnx.TensorProto.INT2
UINT8, UINT4 = onnx.TensorProto.UINT8, onnx.TensorProto.UINT4
CODE_BITS = {INT8: 8, UINT8: 8, INT4: 4, UINT4: 4, INT2: 2}


def written(model: Model, folder: Path, technique: str | None = None, **settings: Any) -> Artifact:
    """The file of a model after a technique, checked against the reference."""
    result = model
    if technique is not None:
        plan = plan_for(profile(model), technique, settings)
        result = apply(model, plan, batches_for(model, size=64))
    OnnxExporter().export(result, folder / "model.onnx")
    size = (folder / "model.onnx").stat().st_size
    files = {"model.onnx": size}
    artifact = Artifact(path=folder, format="onnx", model_file="model.onnx", files=files, sha256="")
    check_parity(result, artifact, batches_for(model, count=1)[0])
    return artifact


def fused(artifact: Artifact) -> Counter[str]:
    """Operators of the graph that ONNX Runtime runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(artifact.path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(artifact.model_path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(artifact.path / "optimized.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def stored(artifact: Artifact) -> Counter[int]:
    """Elements of all initializers by type."""
    found: Counter[int] = Counter()
    for initializer in onnx.load(artifact.model_path).graph.initializer:
        found[initializer.data_type] += int(np.prod(initializer.dims))
    return found


def code_bytes(artifact: Artifact) -> float:
    """Of all integers of at most 8 bits."""
    return sum(count * CODE_BITS.get(kind, 0) for kind, count in stored(artifact).items()) / 8


def weights(model: Model) -> int:
    return sum(layer.weights for layer in profile(model).layers)


@pytest.fixture(scope="module")
def static_image(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return written(residual_network(), tmp_path_factory.mktemp("image"), "static_int8")


def test_static_convolutions_run_on_integers(static_image: Artifact):
    operators = fused(static_image)
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == 1
    assert operators["QLinearGlobalAveragePool"] == 1
    assert operators["QGemm"] == 1
    assert not {"Conv", "Gemm", "MatMul", "BatchNormalization", "Relu"} & set(operators)


def test_static_weights_are_stored_as_int8_alone(static_image: Artifact):
    found = stored(static_image)
    assert found[INT8] >= weights(residual_network())
    assert found[onnx.TensorProto.FLOAT] < 100


def test_static_perceptron_runs_on_integers(tmp_path: Path):
    operators = fused(written(perceptron(), tmp_path, "static_int8"))
    assert operators["QGemm"] == 3
    assert not {"Gemm", "MatMul"} & set(operators)


def test_static_signal_network_runs_on_integers(tmp_path: Path):
    assert fused(written(signal_network(), tmp_path, "static_int8"))["QLinearConv"] == 2


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_dynamic_linear_layers_run_on_integers(granularity: str, tmp_path: Path):
    artifact = written(text_network(), tmp_path, "dynamic_int8", activation_granularity=granularity)
    operators = fused(artifact)
    integer = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger")
    assert sum(operators[name] for name in integer) == 3
    assert not {"Gemm", "MatMul"} & set(operators)


def test_embedding_is_gathered_before_it_is_dequantized(tmp_path: Path):
    artifact = written(text_network(), tmp_path, "dynamic_int8")
    graph = onnx.load(artifact.model_path).graph
    tables = {i.name for i in graph.initializer if i.data_type == INT8 and list(i.dims) == [40, 16]}
    assert any(node.op_type == "Gather" and node.input[0] in tables for node in graph.node)


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bits_by_group_run_as_block_products(symmetric: bool, tmp_path: Path):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    model = Model("wide", layers, {"input": torch.randn(1, 6, 64)})
    artifact = written(model, tmp_path, "weight_only", bits=4, group_size=32, symmetric=symmetric)
    assert fused(artifact)["MatMulNBits"] == 2
    assert weights(model) / 2 <= code_bytes(artifact) < weights(model) / 2 + 200


def test_four_bit_convolution_by_group_with_a_short_last_group(tmp_path: Path):
    artifact = written(residual_network(), tmp_path, "weight_only", bits=4, group_size=7)
    assert stored(artifact)[INT4] >= weights(residual_network())
    assert "DequantizeLinear" not in fused(artifact)


@pytest.mark.parametrize(
    "settings", [{"bits": 4}, {"bits": 2, "symmetric": False}, {"bits": 4, "group_size": 16}]
)
def test_narrow_embedding_tables_run(settings: dict[str, Any], tmp_path: Path):
    artifact = written(text_network(), tmp_path, "weight_only", **settings)
    assert fused(artifact)["GatherBlockQuantized"] == 1
    widening = 512 if settings["bits"] == 2 else 0
    assert code_bytes(artifact) < weights(text_network()) * settings["bits"] / 8 + 200 + widening


def test_dead_channels_run_as_the_reference(tmp_path: Path):
    model = residual_network()
    with torch.no_grad():
        model.module.body.weight[2] *= 1e-20
        model.module.depthwise.weight[1] = 0
    written(model, tmp_path, "static_int8")


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_convolution_that_does_not_pad_with_zeros_runs(mode: str, tmp_path: Path):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode), nn.BatchNorm2d(8), nn.ReLU())
    model = Model("padded", layers, {"input": torch.randn(1, 3, 8, 8)})
    written(model, tmp_path, "static_int8")


def test_float_file_is_little_more_than_its_weights(tmp_path: Path):
    model = residual_network()
    parameters = sum(p.numel() for p in model.module.parameters())
    assert written(model, tmp_path).nbytes < 4 * parameters + 1500


def test_ports_keep_their_names_and_dynamic_axes(tmp_path: Path):
    session = OnnxRuntime().load(written(text_network(), tmp_path), threads=1)
    assert [(i.name, i.shape) for i in session.inputs] == [("tokens", ("batch", "length"))]
    assert [(o.name, o.shape) for o in session.outputs] == [("output", ("batch", 4))]
    for shape in [(1, 1), (3, 9)]:
        (output,) = session({"tokens": np.zeros(shape, np.int64)})
        assert output.shape == (shape[0], 4)


def test_parameters_of_short_names_are_stored(tmp_path: Path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            for name in reversed(string.ascii_uppercase):
                self.register_buffer(name, torch.rand(8))

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            x = self.layer(input)
            return torch.cat([getattr(self, name) * x for name in reversed(string.ascii_uppercase)], 1)

    written(Model("named", Named(), {"input": torch.randn(1, 8)}), tmp_path, "weight_only")


def test_buffer_that_the_user_calls_codes_is_stored(tmp_path: Path):
    class Codebook(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8))
            self.register_buffer("codes", torch.randn(8))

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input * self.weight + self.codes

    layers = nn.Sequential(nn.Linear(8, 8), Codebook())
    written(Model("codebook", layers, {"input": torch.randn(1, 8)}), tmp_path, "weight_only")


@pytest.mark.parametrize("kind", [ValueError, KeyError, IndexError, AttributeError, AssertionError])
def test_graph_that_cannot_be_cleaned_up_is_refused_by_name(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def clean(*_: object) -> None:
        raise kind("a strange node")

    monkeypatch.setattr(exporter, "clean", clean)
    with pytest.raises(UnsupportedError, match=r"'perceptron' cannot be exported to ONNX: .*strange node"):
        OnnxExporter().export(perceptron(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class Passing(nn.Module):
    """Returns its inputs, one of them twice, and the sum of both."""

    def forward(self, a, b):
        return a, a + b, b, b


def test_input_that_is_an_output_runs(tmp_path: Path):
    example = torch.randn(1, 3)
    session = OnnxRuntime().load(
        written(Model("passing", Passing(), {"a": example, "b": example}), tmp_path), threads=1
    )
    assert [i.name for i in session.inputs] == ["a", "b"]
    assert [o.name for o in session.outputs] == ["output", "output_1", "output_2", "output_3"]
    a, b = np.eye(2, 3, dtype=np.float32), np.ones((2, 3), np.float32)
    for got, wanted in zip(session({"a": a, "b": b}), (a, a + b, b, b), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_model_that_gives_back_its_input_runs(tmp_path: Path):
    written(Model("identity", nn.Identity(), {"input": torch.randn(1, 3)}), tmp_path)


@pytest.mark.parametrize("name", ["output", "output_1"])
def test_no_output_is_called_like_an_input(name: str, tmp_path: Path):
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, output):
            return self.layer(output), output

    class Numbered(Renamed):
        def forward(self, output_1):
            return self.layer(output_1), output_1

    module = Renamed() if name == "output" else Numbered()
    session = OnnxRuntime().load(
        written(Model("named", module, {name: torch.randn(1, 3)}), tmp_path), threads=1
    )
    assert [i.name for i in session.inputs] == [name]
    assert [o.name for o in session.outputs] == ["model_output", "model_output_1"]


def test_several_outputs_are_numbered(tmp_path: Path):
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b, a - b

    example = torch.randn(1, 3)
    session = OnnxRuntime().load(
        written(Model("two", Two(), {"a": example, "b": example}), tmp_path), threads=1
    )
    assert [output.name for output in session.outputs] == ["output", "output_1"]


def transformer() -> Model:
    """Two encoder layers, whose fused forward reads the weights of their layers itself, and a head."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.blocks = nn.TransformerEncoder(block, 2)
            self.head = nn.Linear(16, 4)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self.head(self.blocks(input).mean(1))

    torch.manual_seed(0)
    return Model("transformer", Encoder(), {"input": torch.randn(1, 6, 16)})


@pytest.mark.parametrize("technique", [None, "weight_only", "static_int8", "dynamic_int8"])
def test_transformer_layers_run_as_the_reference(technique: str | None, tmp_path: Path):
    written(transformer(), tmp_path, technique)


@pytest.mark.parametrize("technique", ["weight_only", "static_int8", "dynamic_int8"])
def test_layer_with_two_names_is_stored_once(technique: str, tmp_path: Path):
    torch.manual_seed(0)
    shared = nn.Linear(32, 32)
    layers = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, nn.ReLU()), nn.Linear(32, 4))
    artifact = written(Model("aliased", layers, {"input": torch.randn(1, 32)}), tmp_path, technique)
    assert 32 * 32 + 32 * 4 <= code_bytes(artifact) < 32 * 32 + 32 * 4 + 100


class Tied(nn.Module):
    """An embedding and an output layer of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(400, 64)
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, 400, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.table(tokens)).mean(1))


def tied() -> Model:
    torch.manual_seed(0)
    return Model("tied", Tied(), {"tokens": torch.randint(40, (1, 6))})


TIED_FORMS: list[tuple[str, dict[str, Any], str]] = [
    ("weight_only", {}, "MatMulNBits"),
    ("weight_only", {"bits": 4, "group_size": 32}, "MatMulNBits"),
    ("weight_only", {"granularity": "tensor", "symmetric": False}, "MatMul"),
    ("dynamic_int8", {}, "DynamicQuantizeMatMul"),
    ("static_int8", {}, "MatMulIntegerToFloat"),
]


@pytest.mark.parametrize(("technique", "settings", "operator"), TIED_FORMS)
def test_tied_weight_is_stored_once_and_runs_on_fused_operators(
    technique: str, settings: dict[str, Any], operator: str, tmp_path: Path
):
    artifact = written(tied(), tmp_path, technique, **settings)
    codes = (400 * 64 + 64 * 64) * settings.get("bits", 8) / 8
    assert codes <= code_bytes(artifact) < codes + 1000
    assert fused(artifact)[operator] >= 1
    assert "Transpose" not in fused(artifact)


@pytest.mark.parametrize("technique", ["weight_only", "dynamic_int8", "static_int8"])
def test_layers_that_share_a_weight_store_it_once(technique: str, tmp_path: Path):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    layers[2].weight = layers[0].weight
    artifact = written(Model("shared", layers, {"input": torch.randn(1, 64)}), tmp_path, technique)
    assert 64 * 64 <= code_bytes(artifact) < 64 * 64 + 200


def test_shared_weight_in_two_forms_is_predicted_and_stored_twice(tmp_path: Path):
    model = tied()
    decisions = (
        Decision("weight_only", ("table",), Stage.QUANTIZE, {"bits": 4}),
        Decision("weight_only", ("head", "body"), Stage.QUANTIZE, {"bits": 8}),
    )
    plan = Plan("tied", decisions)
    before = OnnxExporter().lower(predicted(plan, profile(model))).storage_bytes
    result = apply(model, plan)
    OnnxExporter().export(result, tmp_path / "model.onnx")
    size = (tmp_path / "model.onnx").stat().st_size
    assert size == pytest.approx(before, rel=0.05)
    assert size == pytest.approx(OnnxExporter().lower(profile(result)).storage_bytes, rel=0.05)


@pytest.mark.parametrize(
    "activation",
    [lambda x: x.clamp(min=0), lambda x: x.clamp(0, 6), torch.relu],
    ids=["from 0", "0 to 6", "relu"],
)
def test_clamp_and_adaptive_pool_run_on_integers(activation: Callable[..., torch.Tensor], tmp_path: Path):
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(8, 4)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            x = activation(self.second(activation(self.first(input))))
            return self.head(self.pool(x).flatten(1))

    torch.manual_seed(0)
    model = Model("clamped", Clamped(), {"input": torch.randn(1, 3, 8, 8)})
    operators = fused(written(model, tmp_path, "static_int8"))
    assert (operators["QLinearConv"], operators["QLinearGlobalAveragePool"], operators["QGemm"]) == (2, 1, 1)
    assert not {"Clip", "Max", "Relu", "DequantizeLinear"} & set(operators)


def test_activation_that_starts_below_zero_leaves_its_convolution_on_integers(tmp_path: Path):
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(), nn.Conv2d(8, 8, 3))
    model = Model("bounded", layers, {"input": torch.randn(1, 3, 8, 8)})
    assert fused(written(model, tmp_path, "static_int8"))["QLinearConv"] == 2


def pooled(pool: nn.Module, size: tuple[int, int]) -> Model:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(4, 4, 1))
    return Model("pooled", layers, {"input": torch.randn(1, 3, *size)})


POOLED_SIZES = ((8, 8), (9, 11))
EXACT = 1e-4  # relative; a wrong divisor at the edge is off by more than 0.01


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "counts"),
    [(2, 2, 0, True), (3, 2, 0, False), (3, 2, 1, True), (3, 3, 1, False), (4, 3, 2, True), (4, 3, 2, False)],
)
def test_average_pool_that_rounds_its_size_up_is_exact(kernel: int, stride: int, padding: int, counts: bool):
    pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode=True, count_include_pad=counts)
    assert max(pool_parity(pool, size) for size in POOLED_SIZES) < EXACT


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d((2, 3), (3, 2), (0, 1)),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(2, 3, 1, 2, ceil_mode=True),
        nn.MaxPool2d(3, 1, 0, 2),
    ],
    ids=str,
)
def test_other_pools_are_exact(pool: nn.Module):
    assert max(pool_parity(pool, size) for size in POOLED_SIZES) < EXACT


def pool_parity(pool: nn.Module, size: tuple[int, int]) -> float:
    """How far the file of a network with this pool is off, static ranges, relative."""
    model = pooled(pool, size)
    plan = plan_for(profile(model), "static_int8", {})
    result = apply(model, plan, batches_for(model, size=16))
    with tempfile.TemporaryDirectory() as folder:
        OnnxExporter().export(result, Path(folder) / "model.onnx")
        files = {"model.onnx": (Path(folder) / "model.onnx").stat().st_size}
        artifact = Artifact(path=Path(folder), format="onnx", model_file="model.onnx", files=files, sha256="")
        return check_parity(result, artifact, batches_for(model, count=1)[0]).relative_error


def test_average_pool_that_rounds_its_size_up_runs_on_integers(tmp_path: Path):
    artifact = written(pooled(nn.AvgPool2d(2, ceil_mode=True), (9, 11)), tmp_path, "static_int8")
    assert fused(artifact)["QLinearAveragePool"] == 1


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_asymmetric_embedding_before_a_convolution_runs(bits: int, tmp_path: Path):
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(40, 16), nn.Conv1d(16, 8, 3)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.layer(self.table(tokens).transpose(1, 2)).mean(2)

    model = Model("turned", Turned(), {"tokens": torch.randint(40, (1, 6))})
    written(model, tmp_path, "weight_only", bits=bits, symmetric=False, granularity="tensor")


def test_weight_that_another_module_reads_is_stored_as_codes(tmp_path: Path):
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 16)
            self.body = nn.Linear(16, 16)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.body(self.table(tokens)).mean(1)
            return nn.functional.linear(x, self.table.weight)

    model = Model("lookup", Lookup(), {"tokens": torch.randint(40, (1, 6))})
    artifact = written(model, tmp_path, "weight_only")
    assert code_bytes(artifact) == 40 * 16 + 16 * 16


def test_export_is_the_same_each_time(tmp_path: Path):
    for name in ("one.onnx", "two.onnx"):
        OnnxExporter().export(perceptron(), tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_model_is_left_as_it_is(tmp_path: Path):
    model = apply(perceptron(), plan_for(profile(perceptron()), "weight_only", {}))
    kinds = [type(m) for m in model.module.modules()]
    OnnxExporter().export(model, tmp_path / "model.onnx")
    assert [type(m) for m in model.module.modules()] == kinds


def test_model_that_cannot_be_traced_is_refused_by_name(tmp_path: Path):
    class Branches(nn.Module):
        def forward(self, input):
            return input if input.sum() > 0 else -input

    model = Model("branches", Branches(), {"input": torch.randn(1, 3)})
    with pytest.raises(UnsupportedError, match="model 'branches' cannot be exported to ONNX"):
        OnnxExporter().export(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_file_beyond_two_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporter, "MAX_STORED_BYTES", 1000)
    with pytest.raises(UnsupportedError, match="one ONNX file holds 2 GB: choose fewer bits"):
        OnnxExporter().export(perceptron(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_file_of_another_model_fails_the_parity_check(tmp_path: Path):
    artifact = written(perceptron(seed=1), tmp_path)
    with pytest.raises(ParityError, match="is off from the PyTorch reference"):
        check_parity(perceptron(seed=2), artifact, batches_for(perceptron(), count=1)[0])


class Positions(nn.Module):
    """Adds a learned row for each place of a text of fixed length."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(16, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, input):
        return self.head((input + self.places(torch.arange(16))).mean(1))


@pytest.mark.parametrize("technique", ["weight_only", "dynamic_int8"])
def test_table_looked_up_at_fixed_places_stays_in_codes(technique, tmp_path):
    torch.manual_seed(0)
    model = Model("m", Positions(), {"input": torch.randn(1, 16, 64)})
    decision = Decision(technique, ("places", "head"), Stage.QUANTIZE)
    OnnxExporter().export(apply(model, Plan("m", (decision,)), batches_for(model)), tmp_path / "m.onnx")
    stored = {
        i.data_type for i in onnx.load(tmp_path / "m.onnx").graph.initializer if list(i.dims) == [16, 64]
    }
    assert stored == {onnx.TensorProto.INT8}
