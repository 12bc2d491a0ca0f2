"""The whole flow on a tiny model: shipped, refused, replayed, interrupted."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flyweight import attempt, pipeline
from flyweight.apply import Applied, carry_out
from flyweight.core.cost import Budget
from flyweight.core.plan import Plan
from flyweight.core.report import Report, refused_path
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError, ParityError, UnsupportedError
from flyweight.model import Model
from flyweight.pipeline import compress, evaluate_plan, export
from flyweight.recover.settings import TrainingSettings
from flyweight.run.artifact import open_artifact, read_manifest
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.settings import Settings

FEATURES, CLASSES = 32, 3
# A bound on the latency replaces the comparison with the original: nothing here depends on a quiet machine.
GENEROUS = Budget(latency_s=10.0, quality_drop=0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 96), nn.ReLU(), nn.Linear(96, CLASSES)).eval()


@torch.no_grad()
def examples(count: int, seed: int) -> Examples:
    """Random rows with the classes the network gives them."""
    x = np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)
    targets = network()(torch.from_numpy(x)).argmax(1).numpy()
    return Examples({"input": x}, targets, classes=("cat", "dog", "bird"))


SPLITS = Splits(train=examples(40, 0), calibration=examples(40, 1), evaluation=examples(80, 2))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def settings(out: Path, **changes: object) -> Settings:
    values = {
        "model": "tiny",
        "data": "made on the spot",
        "out": str(out),
        "techniques": ("dynamic_int8",),
        "budget": GENEROUS,
        "threads": 1,
        "seconds": 0.05,
    }
    return Settings(**(values | changes))


def run(out: Path, **changes: object) -> Report:
    return compress(settings(out, **changes), module=network(), splits=SPLITS)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A shipped run: its folder and report."""
    out = tmp_path_factory.mktemp("shipped") / "out"
    return out, run(out)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A run with a budget nothing fits, and two techniques."""
    out = tmp_path_factory.mktemp("refused") / "out"
    budget = replace(GENEROUS, storage_bytes=500.0)
    return out, run(out, budget=budget, techniques=("weight_only", "dynamic_int8"))


def test_shipped_folder_holds_everything(shipped: tuple[Path, Report]):
    out, report = shipped
    assert report.verdict.shipped
    names = {"model.onnx", "manifest.json", "plan.json", "report.json", "report.html"}
    assert {path.name for path in out.iterdir()} == names
    assert not refused_path(out).exists()


def test_shipped_artifact_is_whole_and_says_so(shipped: tuple[Path, Report]):
    out, report = shipped
    manifest = read_manifest(out)
    assert (manifest.status, manifest.classes) == ("shipped", ("cat", "dog", "bird"))
    assert open_artifact(out).nbytes == report.compressed.storage_bytes


def test_report_says_what_was_measured(shipped: tuple[Path, Report]):
    _, report = shipped
    assert report.compressed.storage_bytes < report.original.storage_bytes
    assert report.original.macs == FEATURES * 96 + 96 * CLASSES
    assert report.comparison.examples == 80
    assert report.original.quality.value == 1.0
    assert [a.outcome for a in report.attempts] == ["shipped"]
    assert [layer.technique for layer in report.layers] == ["dynamic_int8", "dynamic_int8"]


def test_report_says_where_quality_is_lost(shipped: tuple[Path, Report]):
    _, report = shipped
    assert report.analysis.unit == "KL divergence, nats"
    assert [layer.name for layer in report.analysis.layers] == [layer.name for layer in report.layers]
    for layer, loss in zip(report.layers, report.analysis.layers, strict=True):
        assert layer.output_sqnr_db == loss.errors.output.sqnr_db
        assert loss.damage > 0


def test_the_attempt_that_is_kept_is_analysed_whether_shipped_or_not(refused: tuple[Path, Report]):
    out, report = refused
    assert report.analysis.layers
    told = json.loads((refused_path(out) / "report.json").read_text())
    assert len(told["analysis"]["layers"]) == len(report.analysis.layers)


@pytest.mark.parametrize("transform", ["equalization", "smoothing"])
def test_a_scale_that_moves_between_layers_is_no_error(transform: str, tmp_path: Path):
    report = run(tmp_path / "out", techniques=(f"{transform}+weight_only",))
    assert report.technique == f"{transform}+weight_only"
    for layer in report.analysis.layers:
        assert layer.errors.weight.sqnr_db > 35
        assert layer.errors.output_alone.sqnr_db > 35


def test_only_the_attempt_that_is_kept_is_analysed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    analysed = []
    monkeypatch.setattr(attempt, "analyse", lambda *args, **kwargs: analysed.append(args))
    budget = replace(GENEROUS, storage_bytes=500.0)
    run(tmp_path / "out", budget=budget, techniques=("weight_only", "dynamic_int8"))
    assert len(analysed) == 1


def test_plan_is_replayed_to_the_same_bytes(shipped: tuple[Path, Report], tmp_path: Path):
    out, _ = shipped
    report = run(tmp_path / "again", plan=str(out / "plan.json"), techniques=())
    assert report.technique == "plan"
    assert (tmp_path / "again/model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    assert (tmp_path / "again/plan.json").read_bytes() == (out / "plan.json").read_bytes()


def test_refused_run_leaves_the_best_attempt_under_another_name(refused: tuple[Path, Report]):
    out, report = refused
    assert not report.verdict.shipped
    assert not out.exists()
    assert read_manifest(refused_path(out)).status == "refused"
    assert any(reason.endswith("the 500 B allowed") for reason in report.verdict.reasons)


def test_refused_report_on_disk_gives_the_reasons_and_all_attempts(refused: tuple[Path, Report]):
    out, report = refused
    told = json.loads((refused_path(out) / "report.json").read_text())
    assert told["verdict"]["reasons"] == list(report.verdict.reasons)
    assert [a["name"] for a in told["attempts"]] == ["weight_only", "dynamic_int8"]


@pytest.mark.parametrize("error", [UnsupportedError, ParityError])
def test_a_technique_that_fails_leaves_the_turn_to_the_next(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(model: Model, plan: Plan, batches: object) -> Applied:
        if plan.decisions[0].technique == "weight_only":
            raise error("layer '0' does not take it")
        return carry_out(model, plan, batches)

    monkeypatch.setattr(attempt, "carry_out", failing)
    report = run(tmp_path / "out", techniques=("weight_only", "dynamic_int8"))
    assert report.verdict.shipped
    assert [(a.name, a.outcome) for a in report.attempts] == [
        ("weight_only", "layer '0' does not take it"),
        ("dynamic_int8", "shipped"),
    ]


def test_a_layer_that_nothing_uses_is_left_out_and_told(tmp_path: Path):
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.pooler = network(), nn.Linear(FEATURES, 512)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.pooler(input)
            return self.body(input)

    report = compress(settings(tmp_path / "out", techniques=("static_int8",)), module=Loose(), splits=SPLITS)
    assert [layer.name for layer in report.layers] == ["body.0", "body.2"]
    assert "nothing uses the output of pooler: left out of the plan and of the file" in report.notes
    assert report.original.storage_bytes < 4 * 512 * FEATURES


def test_original_module_is_untouched(tmp_path: Path):
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export(settings(tmp_path / "out"), module=module, splits=SPLITS)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert [type(m) for m in module] == [nn.Linear, nn.ReLU, nn.Linear]


def test_existing_folder_is_replaced_only_if_asked(tmp_path: Path):
    out = tmp_path / "out"
    export(settings(out), module=network(), splits=SPLITS)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="out"):
        export(settings(out), module=network(), splits=SPLITS)
    assert (out / "manifest.json").read_bytes() == before
    report = run(out, overwrite=True)
    assert report.verdict.shipped
    assert read_manifest(out).status == "shipped"


@pytest.mark.parametrize("name", ["out", "out-refused"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_refused_before_any_work(
    name: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "_prepare", interrupted)
    (tmp_path / name).mkdir()
    (tmp_path / name / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{name} holds files that are no artifact"):
        run(tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_export_writes_the_model_as_it_is(tmp_path: Path):
    artifact = export(settings(tmp_path / "out"), module=network(), splits=SPLITS)
    assert artifact == open_artifact(tmp_path / "out")
    assert read_manifest(tmp_path / "out").status == "exported"
    assert Plan.from_json((tmp_path / "out/plan.json").read_text()).decisions == ()
    session = OnnxRuntime().load(artifact, threads=1)
    x = torch.randn(3, FEATURES)
    with torch.no_grad():
        np.testing.assert_allclose(session({"input": x.numpy()})[0], network()(x).numpy(), atol=1e-5)


def test_export_carries_out_a_plan(shipped: tuple[Path, Report], tmp_path: Path):
    out, _ = shipped
    given = settings(tmp_path / "out", plan=str(out / "plan.json"))
    export(given, module=network(), splits=SPLITS)
    assert (tmp_path / "out/model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def interrupted(*args: object, **kwargs: object) -> object:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["measure", "check_parity", "write_reports"])
def test_interrupt_leaves_nothing(
    where: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attempt, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []


def test_work_folder_is_removed_after_an_error(temporary: Path, tmp_path: Path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def forward(self, input):
            return self.layer(input if input.sum() > 0 else -input)

    with pytest.raises(UnsupportedError, match="cannot be exported"):
        compress(settings(tmp_path / "out"), module=Branches(), splits=SPLITS)
    assert list(tmp_path.iterdir()) == [temporary]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"techniques": ("weight_only",), "technique_settings": {"bits": 12}},
            "bits must be in 2..8 or 16, got 12",
        ),
        ({"plan": "", "techniques": ("weight_only",)}, "leave out --technique"),
        ({"plan": "", "techniques": (), "technique_settings": {"bits": 4}}, "leave out --set"),
        ({"techniques": ("magic",)}, "no technique is called 'magic'"),
        ({"techniques": ("weight_only",), "technique_settings": {"colour": 1}}, "has no setting 'colour'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_measured(
    changes: dict[str, object], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "pack", interrupted)
    if "plan" in changes:
        (tmp_path / "plan.json").write_text(Plan("tiny").to_json())
        changes = {**changes, "plan": str(tmp_path / "plan.json")}
    with pytest.raises(InputError, match=reason):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


FEW_BITS = {
    "techniques": ("weight_only+static_activations",),
    "technique_settings": {"bits": 4, "activation_bits": 4, "edge_bits": 4},
}


def test_activations_of_few_bits_are_measured_in_pytorch(tmp_path: Path):
    quality = evaluate_plan(settings(tmp_path / "out", **FEW_BITS), module=network(), splits=SPLITS)
    assert 0.6 < quality.estimate.value < 1
    assert quality.examples == len(SPLITS.evaluation)
    assert "no ONNX file holds activations of 4 bits, and ONNX Runtime has no kernel" in quality.notes[0]
    assert list(tmp_path.iterdir()) == []


def test_activations_of_few_bits_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attempt, "apply", interrupted)
    with pytest.raises(UnsupportedError, match="reads 4-bit activations, and only PyTorch computes"):
        run(tmp_path / "out", **FEW_BITS)


def test_a_plan_that_a_file_holds_is_measured_in_pytorch_too(tmp_path: Path):
    quality = evaluate_plan(settings(tmp_path / "out"), module=network(), splits=SPLITS)
    assert quality.estimate.value > 0.9
    assert quality.notes == ("measured in PyTorch, not on a file",)


def test_a_plan_is_trained_before_it_is_measured(tmp_path: Path):
    trained = settings(tmp_path / "out", **FEW_BITS, training=TrainingSettings(epochs=1))
    quality = evaluate_plan(trained, module=network(), splits=SPLITS)
    assert quality.notes[1].startswith("trained for 1 epochs")
    assert list(tmp_path.iterdir()) == []


def test_one_plan_is_measured_at_a_time(tmp_path: Path):
    both = settings(tmp_path / "out", techniques=("dynamic_int8", "weight_only"))
    with pytest.raises(InputError, match="got dynamic_int8, weight_only: join techniques of one plan by"):
        evaluate_plan(both, module=network(), splits=SPLITS)
