"""Training inside `compress`: the file is better, the report says so, and an interrupt loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flyweight.core.cost import Budget
from flyweight.core.report import Report, refused_path
from flyweight.data.examples import Splits
from flyweight.errors import InputError
from flyweight.pipeline import compress
from flyweight.recover import train as loop
from flyweight.recover.checkpoint import training_folder
from flyweight.recover.settings import TrainingSettings
from flyweight.run.artifact import open_artifact
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.settings import Settings
from flyweight.settings_file import settings_from
from tests.command_line import call, write_files
from tests.recover.networks import compressed, perceptron, plan_for, splits

GENEROUS = Budget(latency_s=10.0, quality_drop=0.9)
TRAINING = TrainingSettings(
    epochs=3, learning_rate=0.01, train_batch_size=32, precision="float32", held_out=0.25
)


def settings(out: Path, training: TrainingSettings, **changes: object) -> Settings:
    values = {
        "model": "tiny",
        "data": "made on the spot",
        "out": str(out),
        "techniques": ("weight_only",),
        "technique_settings": {"bits": 2},
        "budget": GENEROUS,
        "training": training,
        "threads": 1,
        "seconds": 0.05,
    }
    return Settings(**(values | changes))


def run(out: Path, training: TrainingSettings = TRAINING, **changes: object) -> Report:
    model = perceptron()
    return compress(settings(out, training, **changes), module=model.module, splits=splits(model))


def notes_on_training(report: Report) -> list[str]:
    return [note for note in report.notes if note.startswith("trained for")]


def test_a_refused_run_leaves_no_state(tmp_path: Path):
    report = run(tmp_path / "out", budget=Budget(storage_bytes=10.0, latency_s=10.0, quality_drop=0.9))
    assert not report.verdict.shipped
    assert notes_on_training(report)
    assert [path.name for path in tmp_path.iterdir()] == [refused_path(tmp_path / "out").name]


def test_an_interrupted_run_goes_on_with_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    learn = loop._Loop._learn

    def watched(self, step: int) -> None:
        if len(taken) == 10:  # of 18, after the first of three epochs
            raise KeyboardInterrupt
        taken.append(step)
        learn(self, step)

    monkeypatch.setattr(loop._Loop, "_learn", watched)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [training_folder(tmp_path / "out").name]
    del taken[:10]
    monkeypatch.setattr(loop._Loop, "_learn", lambda self, step: (taken.append(step), learn(self, step)))
    report = run(tmp_path / "out", replace(TRAINING, resume=True))
    assert taken == list(range(6, 18))
    assert report.verdict.shipped
    (note,) = notes_on_training(report)
    assert "trained for 3 epochs on 192 examples" in note
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert error_of_file(tmp_path / "out") < 0.9 * untrained_error()


def error_of_file(out: Path) -> float:
    session = OnnxRuntime().load(open_artifact(out), threads=1)
    (outputs,) = session({"input": splits(perceptron()).evaluation.inputs["input"]})
    return error(torch.from_numpy(outputs))


@torch.no_grad()
def untrained_error() -> float:
    model = perceptron()
    small = compressed(model, plan_for(model, "weight_only", {"bits": 2}))
    return error(small.module(torch.from_numpy(splits(model).evaluation.inputs["input"])))


@torch.no_grad()
def error(outputs: torch.Tensor) -> float:
    """Of outputs on evaluation examples, relative to those of the original."""
    model = perceptron()
    wanted = model.module(torch.from_numpy(splits(model).evaluation.inputs["input"]))
    return float((outputs - wanted).norm() / wanted.norm())


def test_data_without_training_examples_are_refused(tmp_path: Path):
    model = perceptron()
    own = splits(model).evaluation
    with pytest.raises(InputError, match="no training examples but those"):
        compress(settings(tmp_path / "out", TRAINING), module=model.module, splits=Splits(own, own, own))


def test_settings_of_training_are_read_back_as_they_were(tmp_path: Path):
    training = TrainingSettings(
        epochs=3,
        train_seconds=20.5,
        tune="scales",
        learning_rate=0.1,
        augment={"crop": 4, "flip": True},
        patience=2,
        resume=True,
    )
    told = settings(tmp_path, training).to_dict()
    assert settings_from(told).training == training


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"tune": "some"}, "tune must be one of all, scales"),
        ({"learning_rate": 0.0}, "learning_rate must be finite and above 0"),
        ({"train_seconds": float("inf")}, "train_seconds must be finite"),
        ({"train_batch_size": 0}, "train_batch_size must be at least 1"),
        ({"label_weight": 1.5}, "label_weight must be in 0..1"),
        ({"held_out": 1.0}, "held_out must be between 0 and 1"),
        ({"warm_up": 1.0}, "warm_up must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"augment": {"rotate": 3}}, "augment knows crop, flip, got 'rotate'"),
        ({"augment": {"flip": 1}}, "flip must be true or false, got 1"),
        ({"augment": {"crop": -1}}, "crop must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**values)


def test_the_command_line_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    words = ["compress", "nets.py:net", "--weights", "net.safetensors", "--data", "data.npz", "-o", "small"]
    words += ["--technique", "weight_only", "--bits", "3", "--max-latency", "10s", "--max-drop", "90%"]
    words += ["--epochs", "2", "--learning-rate", "0.002", "--training", "train_batch_size=16", "--json"]
    code, out, _ = call(capsys, [*words, "--seconds", "0.05"])
    assert code == 0
    assert "trained for 2 epochs on" in out
    assert '"learning_rate": 0.002' in out


def test_unknown_settings_of_training_are_refused(capsys: pytest.CaptureFixture[str]):
    code, _, told = call(capsys, ["compress", "x", "--data", "y", "-o", "z", "--training", "epoch=2"])
    assert code == 2
    assert "did you mean 'epochs'?" in told
