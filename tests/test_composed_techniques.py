"""Techniques joined by + on the command line: one plan, one decision a stage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import call, write_files

NET = ("nets.py:net", "--weights", "net.safetensors", "--data", "data.npz")
QUICK = ("--max-latency", "1s", "--max-drop", "5%", "--seconds", "0.05", "-o", "small")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command line in a folder with a small network and its data."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(capsys, arguments)


def test_joined_techniques_are_carried_out_in_one_plan(command: Command):
    chosen = ("--technique", "equalization+weight_only", "--bits", "8", "--set", "sweeps=5")
    code, printed, errors = command("compress", *NET, *chosen, *QUICK)
    assert (code, errors) == (0, ""), printed
    decisions = json.loads(Path("small/plan.json").read_text())["decisions"]
    found = [(d["technique"], d["stage"], d["settings"]) for d in decisions]
    layers = len(decisions) // 2
    assert found[:layers] == [("equalization", "transform", {"sweeps": 5})] * layers
    assert found[layers:] == [("weight_only", "quantize", {"bits": 8})] * layers
    report = json.loads(Path("small/report.json").read_text())
    assert report["attempts"][0]["name"] == "equalization+weight_only"
    assert {layer["technique"] for layer in report["layers"]} == {"equalization+weight_only"}


def test_a_plan_of_joined_techniques_can_be_carried_out_again(command: Command):
    command("compress", *NET, "--technique", "equalization+weight_only", *QUICK)
    code, _, errors = command("compress", *NET, "--plan", "small/plan.json", *QUICK[:-1], "again")
    assert (code, errors) == (0, "")
    assert Path("again/model.onnx").read_bytes() == Path("small/model.onnx").read_bytes()


BENT = """
import torch
from torch import nn

def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 3))
"""


@pytest.fixture
def bent(tmp_path: Path) -> tuple[str, ...]:
    """A network between whose layers nothing can be scaled."""
    (tmp_path / "bent.py").write_text(BENT)
    return ("bent.py:net", "--weights", "net.safetensors", "--data", "data.npz")


def test_a_transform_that_finds_nothing_is_left_out_beside_others(command: Command, bent: tuple[str, ...]):
    chosen = ("--technique", "equalization+weight_only")
    code, printed, errors = command("compress", *bent, *chosen, *QUICK)
    assert (code, errors) == (0, ""), printed
    plan = json.loads(Path("small/plan.json").read_text())
    assert [d["technique"] for d in plan["decisions"]] == ["weight_only"] * 2
    report = json.loads(Path("small/report.json").read_text())
    assert {layer["technique"] for layer in report["layers"]} == {"weight_only"}
    (note,) = [note for note in report["notes"] if "equalization" in note]
    assert re.fullmatch("equalization finds no two layers .*; left out of the plan", note)
    code, printed, _ = command("evaluate", *bent, *chosen)
    assert "equalization finds no two layers" in " ".join(printed.split()), code


def test_a_transform_that_finds_nothing_is_refused_alone(command: Command, bent: tuple[str, ...]):
    code, _, errors = command("compress", *bent, "--technique", "equalization", *QUICK)
    assert code == 1
    assert re.search(r"equalization finds no two layers of model .*; choose another technique", errors)


@pytest.mark.parametrize(
    ("chosen", "status", "reason"),
    [
        (("equalisation+weight_only",), 2, "no technique is called 'equalisation'"),
        (("equalization+",), 2, "no technique is called ''"),
        (("weight_only+static_int8",), 1, "weight_only and static_int8 are both of stage quantize"),
        (("equalization+weight_only", "--set", "swoops=5"), 1, "no technique has a setting 'swoops'"),
        (("equalization+weight_only", "--set", "sweeps=0"), 1, "sweeps must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused_before_any_work(
    chosen: tuple[str, ...], status: int, reason: str, command: Command
):
    code, _, errors = command("compress", *NET, "--technique", *chosen, *QUICK)
    assert code == status
    assert re.search(reason, " ".join(errors.replace("│", " ").split())), errors
    assert not Path("small").exists()
