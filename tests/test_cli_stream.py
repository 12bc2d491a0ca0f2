"""``flyweight stream`` from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import call
from flyweight import streaming
from streamed_stack import BLOCKS, stack_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return stack_files(tmp_path_factory.mktemp("cli_stack"))


def words(files: tuple[Path, Path, Path], out: Path, *others: str | Path) -> list[str | Path]:
    code, weights, _ = files
    return ["stream", f"{code}:make", "--weights", weights, "-o", out, "--technique", "weight_only", *others]


def test_it_writes_a_folder_and_says_how_large(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tmp_path: Path
):
    out = tmp_path / "out"
    code, printed, _ = call(capsys, words(files, out, "--bits", "4", "--group-size", "8"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert code == 0
    nbytes = sum(entry["bytes"] for entry in manifest["files"].values())
    assert printed == f"{BLOCKS} blocks, {nbytes} bytes written to {out}\n"
    chosen = {key: manifest["settings"][key] for key in ("bits", "group_size", "granularity")}
    assert chosen == {"bits": 4, "group_size": 8, "granularity": "group"}


def test_json_is_the_manifest(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tmp_path: Path
):
    code, printed, _ = call(capsys, words(files, tmp_path / "out", "--json"))
    assert code == 0
    assert json.loads(printed)["technique"] == "weight_only"


@pytest.mark.parametrize(
    ("others", "code", "message"),
    [
        (
            ["--technique", "weight_onyl"],
            2,
            "no technique is called 'weight_onyl'; did you mean 'weight_only'",
        ),
        (["--max-memory", "4"], 2, "4 has no unit"),
        (["--data", "nothing.npz"], 1, "there is no file nothing.npz"),
        (["--stack", "words"], 1, "'words' is no list of blocks"),
        (["--set", "bits"], 2, "write NAME=VALUE, got 'bits'"),
        (["--max-memory", "1MB"], 1, "1 MB of memory (--max-memory) do not suffice"),
    ],
)
def test_failures_are_one_line(
    capsys: pytest.CaptureFixture[str],
    files: tuple[Path, Path, Path],
    tmp_path: Path,
    others: list[str],
    code: int,
    message: str,
):
    found, _, told = call(capsys, words(files, tmp_path / "out", *others))
    assert found == code
    assert message in told
    assert len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_replaced(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tmp_path: Path
):
    out = tmp_path / "out"
    assert call(capsys, words(files, out, "--bits", "4"))[0] == 0
    code, _, told = call(capsys, words(files, out, "--bits", "2"))
    assert (code, "holds an artifact already" in told) == (1, True)
    assert call(capsys, words(files, out, "--bits", "2", "--overwrite"))[0] == 0
    assert json.loads((out / "manifest.json").read_text())["settings"]["bits"] == 2


def test_an_interrupt_says_that_finished_blocks_stay_and_the_same_command_goes_on(
    capsys: pytest.CaptureFixture[str],
    files: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / "out"
    quantize = streaming._quantize

    def interrupted(work: Any, index: int, streams: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return quantize(work, index, streams)

    monkeypatch.setattr(streaming, "_quantize", interrupted)
    code, _, told = call(capsys, words(files, out))
    assert code == 130
    kept = f"interrupted; 2 of {BLOCKS} blocks are kept in {out}-unfinished, and the same command goes on"
    assert kept in told
    monkeypatch.undo()
    assert call(capsys, words(files, out))[0] == 0
    assert not Path(f"{out}-unfinished").exists()


def test_an_interrupt_before_the_first_block_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    files: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "_quantize", interrupted)
    code, _, told = call(capsys, words(files, tmp_path / "out"))
    assert (code, told) == (130, "flyweight: interrupted; nothing half-made is left\n")
    assert not list(tmp_path.iterdir())


def test_arrays_that_are_no_inputs_are_named(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tmp_path: Path
):
    import numpy as np

    np.savez(tmp_path / "d.npz", tokens=np.zeros((2, 6), int), masks=np.zeros((2, 6)))
    code, _, told = call(capsys, words(files, tmp_path / "out", "--data", tmp_path / "d.npz"))
    assert code == 1
    assert "d.npz holds 'masks'; the model's inputs are tokens, attention_mask" in told
