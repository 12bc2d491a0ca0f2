"""Every technique, exporter and runtime of the catalog keeps the contracts; what breaks one is caught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from flyweight import catalog
from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.core.report import Artifact
from flyweight.errors import ContractError, MissingDependency
from flyweight.export.onnx import OnnxExporter
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.techniques.weight_only import WeightOnly
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.binary import BinaryWeight
from flyweight.tensors.encoded import encoded_layers
from flyweight.testing.contracts import (
    TECHNIQUE_CHECKS,
    Case,
    cases,
    check_exporter,
    check_projection,
    check_promises,
    check_runtime,
)
from flyweight.testing.strategies import NETWORKS, batches_for, perceptron

QUICK = {"learned_rounding": {"steps": 4, "rounds": 0}, "gptq": {"rounds": 0}}


def _exported_often(case: Case) -> bool:
    """All networks where a technique is exported in a way of its own; of the others, layers of each kind."""
    own_way = {"weight_only", "static_int8", "dynamic_int8", "float_storage"}
    return case.technique in own_way or case.network in {"residual", "text"}


CASES = [case for name in catalog.names("technique") for case in cases(name, QUICK.get(name))]
EXPORTED = [
    pytest.param(case, marks=() if _exported_often(case) else pytest.mark.slow)
    for case in CASES
    if case.technique not in {"learned_rounding", "kv_cache"}  # the same as gptq; no file holds a cache
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Artifact]:
    """Each case's file, written and checked once."""
    made: dict[Case, Artifact] = {}

    def of(case: Case) -> Artifact:
        if case not in made:
            folder = tmp_path_factory.mktemp("exported")
            made[case] = check_exporter(OnnxExporter(), OnnxRuntime(), case.result, folder)
        return made[case]

    return of


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("check", TECHNIQUE_CHECKS, ids=lambda check: check.__name__)
def test_technique_keeps_the_contract(case: Case, check: Callable[[Case], None]):
    _skip_refused(case)
    check(case)


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_result_exports_to_a_file_that_computes_the_same(case: Case, exported: Callable[[Case], Artifact]):
    _skip_refused(case)
    exported(case)


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_onnx_file_holds_integers_and_no_metadata(case: Case, exported: Callable[[Case], Artifact]):
    _skip_refused(case)
    model = onnx.load(exported(case).model_path)
    stored = sum(_codes(i) for i in model.graph.initializer)
    weights = {
        id(layer.layer.weight): layer.layer.weight
        for _, layer in encoded_layers(case.result.module)
        if isinstance(layer.encoding(), AffineWeight | BinaryWeight)
    }
    assert stored >= sum(weight.numel() for weight in weights.values())
    assert [*model.metadata_props, model.doc_string, model.graph.doc_string] == ["", ""]
    assert not any(node.metadata_props or node.doc_string or node.name for node in model.graph.node)
    packed = any(node.op_type in {"MatMulNBits", "GatherBlockQuantized"} for node in model.graph.node)
    assert {entry.domain for entry in model.opset_import} == {"", *["com.microsoft"] * packed}


def _codes(initializer: onnx.TensorProto) -> int:
    """Integer codes of at most 8 bits; those in bytes may be four in each."""
    kinds = onnx.TensorProto
    narrow = {kinds.INT8: 1, kinds.INT4: 1, kinds.INT2: 1, kinds.UINT4: 1, kinds.UINT2: 1, kinds.UINT8: 4}
    return narrow.get(initializer.data_type, 0) * int(np.prod(initializer.dims))


def _skip_refused(case: Case) -> None:
    if case.refusal:
        pytest.skip(case.refusal)


@pytest.mark.parametrize("name", catalog.names("technique"))
def test_technique_finds_work_in_a_network(name: str):
    assert any(case.refusal is None for case in CASES if case.technique == name)


@pytest.mark.parametrize("network", NETWORKS)
def test_float_model_exports_to_a_file_that_computes_the_same(network: str, tmp_path: Path):
    check_exporter(OnnxExporter(), OnnxRuntime(), NETWORKS[network](), tmp_path)


@pytest.mark.parametrize("name", catalog.names("runtime"))
def test_runtime_keeps_the_contract(name: str, tmp_path: Path):
    runtime = catalog.get("runtime", name)()
    model = perceptron()
    (batch,) = batches_for(model, count=1, size=3)
    inputs = {key: value.numpy() for key, value in batch.items()}
    OnnxExporter().export(model, tmp_path / "model.onnx")
    file = Artifact(path=tmp_path, format="onnx", model_file="model.onnx", files={}, sha256="")
    try:
        check_runtime(runtime, file if "onnx" in runtime.formats else model, inputs)
    except MissingDependency as missing:
        pytest.skip(str(missing))


class Liar:
    """Does what weight_only does at 8 bits, and says 4."""

    name = "liar"
    stage = Stage.QUANTIZE

    def propose(self, profile):
        return [Decision("liar", (layer.name,), self.stage) for layer in profile.layers]

    def predict(self, profile, decision):
        return WeightOnly().predict(profile, self._eight(decision))

    def apply(self, model, decision, batches):
        WeightOnly().apply(model, self._eight(decision), batches)

    def _eight(self, decision):
        return Decision("weight_only", decision.layers, decision.stage, {"bits": 8})


class SmallerThanItIs(Liar):
    def predict(self, profile, decision):
        after = super().predict(profile, decision)
        for name in decision.layers:
            layer = after.by_name[name]
            after = after.with_layer(replace(layer, weight_bits=layer.weight_bits / 2))
        return after


class SlightlySmallerThanItIs(Liar):
    def predict(self, profile, decision):
        after = super().predict(profile, decision)
        for name in decision.layers:
            layer = after.by_name[name]
            after = after.with_layer(replace(layer, weight_bits=layer.weight_bits * 0.99))
        return after


class FewerMacsThanItHas(Liar):
    def predict(self, profile, decision):
        after = super().predict(profile, decision)
        return after.with_layer(replace(after.by_name[decision.layers[0]], macs=1))


class AnotherFormThanItIs(Liar):
    def predict(self, profile, decision):
        after = super().predict(profile, decision)
        return after.with_layer(replace(after.by_name[decision.layers[0]], encoding="codebook"))


class OtherShape(Liar):
    def apply(self, model, decision, batches):
        model.module = nn.Sequential(model.module, nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("technique", "reason"),
    [
        (SmallerThanItIs, "takes .* bytes, .* were predicted"),
        (FewerMacsThanItHas, "has macs .*, 1 was predicted"),
        (AnotherFormThanItIs, "has encoding affine, codebook was predicted"),
        (OtherShape, "changed the output shapes"),
    ],
)
def test_technique_that_breaks_its_promise_is_caught(
    technique: type, reason: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(catalog.CATALOG["technique"], "liar", f"{__name__}:{technique.__name__}")
    plan = Plan("perceptron", (Decision("liar", ("0", "2"), Stage.QUANTIZE),))
    with pytest.raises(ContractError, match=reason):
        apply(perceptron(), plan)


@pytest.mark.parametrize("network", ["perceptron", "tied"])
def test_technique_that_is_one_percent_off_its_size_fails_the_contract(
    network: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(catalog.CATALOG["technique"], "liar", f"{__name__}:SlightlySmallerThanItIs")
    case = next(case for case in cases("liar") if case.network == network)
    with pytest.raises(ContractError, match=r"takes .* bytes, .* were predicted"):
        check_promises(case)


@pytest.mark.parametrize("technique", ["weight_only", "static_int8", "dynamic_int8"])
def test_exporter_that_is_one_percent_off_its_size_fails_the_contract(technique: str, tmp_path: Path):
    class Flattering:
        format = OnnxExporter.format
        model_file = OnnxExporter.model_file
        export = OnnxExporter().export

        def lower(self, profile):
            lowered = OnnxExporter().lower(profile)
            return replace(lowered, container_bytes=lowered.container_bytes - 0.01 * lowered.storage_bytes)

    case = next(case for case in cases(technique) if case.network == "tied")
    with pytest.raises(AssertionError, match="bytes, not"):
        check_exporter(Flattering(), OnnxRuntime(), case.result, tmp_path)


def test_encoder_that_is_no_projection_is_caught():
    case = Case(
        "weight_only", "perceptron", Plan("perceptron", (Decision("weight_only", ("0",), Stage.QUANTIZE),))
    )
    ((_, layer),) = encoded_layers(case.result.module)
    (encoder,) = layer.encoders
    layer.encoders = (lambda weight, before: encoder(weight * 0.9, before),)
    with pytest.raises(AssertionError, match="layer '0' moves"):
        check_projection(case)


def test_runtime_that_takes_anything_is_caught():
    class Careless:
        name = "careless"
        formats = ("module",)

        def load(self, source: Model, threads: int) -> Callable[..., Sequence[np.ndarray]]:
            return lambda inputs: [np.zeros((1, 4), np.float32)]

    with pytest.raises(AssertionError, match="a missing input must be an InputError"):
        check_runtime(Careless(), perceptron(), {"input": np.zeros((1, 12), np.float32)})


def test_each_decision_alone_is_as_predicted():
    model = perceptron()
    for decision in WeightOnly().propose(profile(model)):
        apply(model, Plan(model.name, (decision,)))


def test_networks_are_the_same_each_time():
    for make in NETWORKS.values():
        one, other = make(), make()
        assert all(torch.equal(a, b) for a, b in zip(one.outputs(), other.outputs(), strict=True))
