"""``flyweight inspect`` on what the commands wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import call, write_files
from flyweight import cli_command
from flyweight.cli import app

COMPRESS = ("compress", "nets.py:net", "--weights", "net.safetensors", "--data", "data.npz")
FOUR_BITS = ("--technique", "weight_only", "--bits", "4", "--max-drop", "50%", "--seconds", "0.05")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shipped artifact ``small``, a refused ``tiny-refused`` and an export ``original``."""
    folder = tmp_path_factory.mktemp("made")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments, code in (
            ((*COMPRESS, *FOUR_BITS, "--max-latency", "1s", "-o", "small", "--quiet"), 0),
            ((*COMPRESS, *FOUR_BITS, "--max-size", "10B", "-o", "tiny", "--quiet"), 3),
            (("export", *COMPRESS[1:], "-o", "original", "--quiet"), 0),
        ):
            assert cli_command.run(app, list(arguments)) == code
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, made: Path) -> Command:
    """Runs a command line in the folder of ``made``."""
    monkeypatch.chdir(made)
    return lambda *arguments: call(capsys, arguments)


@pytest.mark.parametrize("folder", ["small", "tiny-refused"])
def test_a_folder_that_compress_wrote_is_inspected(folder: str, command: Command) -> None:
    code, printed, errors = command("inspect", folder)
    assert (code, errors) == (0, "")
    text = " ".join(printed.split())
    assert "With all 2 quantized layers, the model's output moves by" in text
    assert "calibration examples, not on the file" in text
    assert [line.split()[1] for line in printed.splitlines() if line[:3] in (" 0 ", " 2 ")] == ["4", "4"]


def test_only_the_costliest_are_shown_on_demand(command: Command) -> None:
    _, printed, _ = command("inspect", "small", "--top", "1")
    assert "1 more do less; --top 2 lists all." in printed


def test_one_layer_is_shown_with_the_shape_of_its_errors(command: Command) -> None:
    code, printed, _ = command("inspect", "small", "--layer", "2")
    assert code == 0
    assert "Rounding errors of the weights, in steps of the codes" in printed
    assert "Closest in shape: uniform" in printed


def test_json_holds_the_analysis_worst_layer_first(command: Command) -> None:
    _, printed, _ = command("inspect", "small", "--json")
    found = json.loads(printed)
    damages = [layer["damage"] for layer in found["layers"]]
    assert found["unit"] == "KL divergence, nats"
    assert damages == sorted(damages, reverse=True)
    assert all(layer["wider"]["damage"] < layer["damage"] for layer in found["layers"])
    _, printed, _ = command("inspect", "small", "--json", "--top", "1")
    assert json.loads(printed)["layers"] == found["layers"][:1]


def test_json_of_one_layer_holds_its_unit(command: Command) -> None:
    _, printed, _ = command("inspect", "small", "--json", "--layer", "2")
    found = json.loads(printed)
    assert (found["name"], found["unit"]) == ("2", "KL divergence, nats")


def test_quiet_prints_nothing(command: Command) -> None:
    assert command("inspect", "small", "--quiet") == (0, "", "")
    assert command("inspect", "small", "--layer", "2", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("nowhere",), 1, "nowhere is not a folder"),
        (
            ("original",),
            1,
            "it was exported or streamed, not measured: name a folder that",
        ),
        (("small", "--layer", "1"), 1, "small has no quantized layer '1'; it has 0, 2"),
        (("small", "--top", "0"), 2, "--top"),
        (("small", "--layer", "2", "--top", "3"), 2, "--layer shows one layer: leave out --top"),
        ((), 2, "OUT"),
    ],
)
def test_what_cannot_be_inspected_is_one_sentence(
    arguments: tuple[str, ...], code: int, told: str, command: Command
) -> None:
    found, printed, errors = command("inspect", *arguments)
    assert (found, printed) == (code, "")
    assert told in errors
    assert len(errors.splitlines()) == 1


def test_a_report_of_an_earlier_release_says_what_to_do(command: Command) -> None:
    shutil.copytree("small", "older", dirs_exist_ok=True)
    path = Path("older/report.json")
    path.write_text(path.read_text().replace('"version": 2', '"version": 1', 1))
    code, _, errors = command("inspect", "older")
    assert code == 1
    assert "version is 1; this release reads 2; flyweight compress writes it anew" in errors


def test_the_page_draws_where_quality_is_lost(made: Path) -> None:
    page = (made / "small" / "report.html").read_text()
    for title in ("Where quality is lost", "What each layer costs, and would gain", "How errors travel"):
        assert title in page
    assert page.count("<svg") >= 6
