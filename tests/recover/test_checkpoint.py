"""Training states on disk: read back as they were, refused when damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flyweight.errors import InputError
from flyweight.recover.checkpoint import (
    Point,
    State,
    forget_training,
    load_optimizer,
    read_checkpoint,
    training_folder,
    write_checkpoint,
)

POINT = Point(step=7, seconds=1.5, best_epoch=1, best_metric=0.5, best_loss=0.25, first_loss=2.0)
STATE = State(
    point=POINT,
    now={"a.weight": torch.arange(6.0).reshape(2, 3).T},
    best={"a.weight": torch.ones(3, 2)},
    optimizer={"0.momentum_buffer": torch.zeros(3, 2), "0.step": torch.tensor(7.0)},
)


def head(path: Path) -> dict[str, object]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["flyweight_training"])


def rewritten(path: Path, text: str) -> Path:
    save_file({"now/a": torch.ones(1)}, path, metadata={"flyweight_training": text})
    return path


def test_a_state_is_read_back_as_it_was(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, STATE, "run")
    read = read_checkpoint(path, "run")
    assert read.point == POINT
    for part in ("now", "best", "optimizer"):
        one, other = getattr(read, part), getattr(STATE, part)
        assert set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_state_before_stays_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, STATE, "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flyweight._atomic._write_synced", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_checkpoint(path, replace(STATE, point=Point(step=8)), "run")
    assert read_checkpoint(path, "run").point.step == 7


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, STATE, "run")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        read_checkpoint(path, "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has version 2"),
        ({"point": {}}, "malformed"),
        ({"extra": 1}, "no training state"),
        ({"run": "other"}, "other settings"),
    ],
)
def test_a_head_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, object], message: str):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, STATE, "run")
    with pytest.raises(InputError, match=message):
        read_checkpoint(rewritten(path, json.dumps(head(path) | changes)), "run")


@pytest.mark.parametrize(
    ("name", "value"), [("step", 1.5), ("step", True), ("seconds", None), ("ended", 1), ("best_loss", "x")]
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, name: str, value: object):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, STATE, "run")
    told = head(path)
    told["point"][name] = value
    with pytest.raises(InputError, match=f"malformed: {name}"):
        read_checkpoint(rewritten(path, json.dumps(told)), "run")


def test_other_tensor_files_are_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match="no training state"):
        read_checkpoint(path, "run")
    write_checkpoint(path, STATE, "run")
    told = json.dumps(head(path))
    save_file({"elsewhere/a": torch.ones(1)}, path, metadata={"flyweight_training": told})
    with pytest.raises(InputError, match="unknown tensor"):
        read_checkpoint(path, "run")


@pytest.mark.parametrize("key", ["3.momentum_buffer", "x.momentum_buffer", "0.momentum_buffer"])
def test_an_optimizer_of_other_parameters_is_refused(key: str):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(InputError, match=r"of the optimizer|optimizer of other parameters"):
        load_optimizer(optimizer, {key: torch.zeros(5)})


def test_only_states_are_forgotten(tmp_path: Path):
    out = tmp_path / "small"
    folder = training_folder(out)
    folder.mkdir()
    write_checkpoint(folder / "attempt-0.safetensors", STATE, "run")
    (folder / "notes.txt").write_text("mine")
    forget_training(out)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    forget_training(out)
    assert not folder.exists()
    forget_training(out)
