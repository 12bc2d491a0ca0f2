from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import cifar10, grouped, minilm_int8, newcomer, refuses_slower, results, rivals
from benchmarks.claims import FLOAT, OURS, Check, Claim, Context, Outcome, compared, number
from benchmarks.minilm import banking77, stsb
from benchmarks.timing import speed_checks
from flyweight.errors import InputError, MissingDependency


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(shared=tmp_path / "shared", work=tmp_path / "work", threads=2, quick=False)


@pytest.mark.parametrize(
    ("ours", "bar", "direction", "holds"),
    [
        (1.0, 1.0, "at least", True),
        (0.999, 1.0, "at least", False),
        (1.0, 1.0, "at most", True),
        (1.001, 1.0, "at most", False),
        (None, 1.0, "at most", False),
        (None, None, "at least", True),
        (float("nan"), 1.0, "at least", False),
    ],
)
def test_check_holds_on_its_side_of_the_bar(ours, bar, direction, holds):
    assert Check(what="x", ours=ours, bar=bar, direction=direction).holds is holds


def test_outcome_holds_only_if_every_check_does():
    good, bad = Check(what="a", ours=2.0, bar=1.0), Check(what="b", ours=0.0, bar=1.0)
    assert Outcome(checks=(good,)).holds
    assert not Outcome(checks=(good, bad)).holds


def test_outcome_needs_a_check():
    with pytest.raises(ValueError, match="at least one check"):
        Outcome(checks=())


def test_outcome_line_names_claim_ours_rivals_bar_holds():
    check = compared("speed", {FLOAT: 1.0, "rival": 1.5, OURS: 2.0}, bar=1.5)
    assert Outcome(checks=(check,)).to_json("fast") == {
        "claim": "fast",
        "ours": {"speed": 2.0},
        "rivals": {"speed": {FLOAT: 1.0, "rival": 1.5}},
        "bar": {"speed": {"at least": 1.5}},
        "holds": True,
    }


def test_compared_without_a_shipped_file_does_not_hold():
    check = compared("speed", {FLOAT: 1.0, "rival": 1.5}, bar=1.5)
    assert check.ours is None
    assert not check.holds


def test_context_names_the_missing_file(context: Context):
    with pytest.raises(InputError, match=r"sheet\.webp.*--shared"):
        context.data("cifar10", "sheet.webp")


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.98765, "0.9877"), (1234567.8, "1,234,568")])
def test_number_is_short(value, text):
    assert number(value) == text


def test_what_the_rivals_of_a_speed_are_is_said():
    samples = {FLOAT: [[4.0]] * 2, "per channel": [[2.0]] * 2, "per tensor": [[1.0]] * 2}
    over_best, _ = speed_checks("net", samples, rivals=["per channel"], called="per-channel rival")
    assert over_best.what == "net: speed over the fastest per-channel rival"


def test_the_size_bar_of_minilm_is_on_the_model_file_and_on_all_files(tmp_path: Path):
    (tmp_path / OURS).write_bytes(bytes(22_900_000))
    model_file, all_files = minilm_int8._size({OURS: tmp_path / OURS}, 23_100_000)
    assert (model_file.ours, model_file.holds) == (22.9, True)
    assert (all_files.ours, all_files.holds) == (23.1, False)


def test_speeds_of_rivals_are_not_in_the_column_of_ours(context: Context, monkeypatch: pytest.MonkeyPatch):
    refused = newcomer.Attempt(exit_code=3, seconds=1.0, out=context.work / "ours", message="it is slower")
    monkeypatch.setattr(newcomer, "compress", lambda *_, **__: refused)
    monkeypatch.setattr(refuses_slower, "_rival_speeds", lambda _: ({"static": 0.3, "dynamic": 0.1}, {}))
    outcome = refuses_slower.run(context)
    speeds, slower, *_ = outcome.checks
    assert (speeds.ours, dict(speeds.rivals)) == (None, {"static": 0.3, "dynamic": 0.1})
    assert slower.holds
    assert outcome.holds


def test_speed_is_judged_against_the_fastest_rival():
    samples = {FLOAT: [[4.0]] * 2, "slow": [[2.0]] * 2, "fast": [[1.0]] * 2, OURS: [[0.5]] * 2}
    over_best, over_float = speed_checks("net", samples, rivals=["slow", "fast"])
    assert over_best.ours == pytest.approx(2.0)
    assert over_best.bar == 1.0
    assert over_best.rivals["fast"] == pytest.approx(1.0)
    assert over_float.ours == pytest.approx(8.0)
    assert over_float.bar is None


def test_speed_bar_ignores_candidates_that_are_only_reported():
    samples = {FLOAT: [[4.0]] * 2, "judged": [[2.0]] * 2, "reported": [[1.0]] * 2, OURS: [[1.5]] * 2}
    over_best, _ = speed_checks("net", samples, rivals=["judged"])
    assert over_best.holds
    assert over_best.rivals["reported"] == pytest.approx(2.0)


@pytest.fixture
def one_claim(monkeypatch: pytest.MonkeyPatch):
    """Makes the command know a single claim, of which each run measures ``ours`` against a bar of 1."""

    def use(ours: float | None) -> None:
        outcome = Outcome(checks=(Check(what="speed", ours=ours, bar=1.0),))
        monkeypatch.setattr(command, "CLAIMS", (Claim("fast", "It is fast.", "1", lambda context: outcome),))

    return use


def test_command_lists_every_claim(capsys: pytest.CaptureFixture[str]):
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert all(claim.name in printed for claim in command.CLAIMS)


@pytest.mark.parametrize(("ours", "code"), [(2.0, 0), (0.5, 1), (None, 1)])
def test_command_exit_code_says_whether_the_bar_holds(one_claim, capsys, ours, code):
    one_claim(ours)
    assert command.main(["fast", "--quick", "--json"]) == code
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line)["holds"] is (code == 0)


def test_command_measures_all(one_claim):
    one_claim(2.0)
    assert command.main(["all", "--quick"]) == 0


def test_command_refuses_an_unknown_claim_in_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert command.main(["faster"]) == 2
    error = capsys.readouterr().err
    assert "faster" in error
    assert len(error.splitlines()) == 1


def test_command_tells_missing_data_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command.main(["cifar_int8", "--quick", "--shared", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "cifar10_resnet20.onnx" in error.replace("\n", "")


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_command_refuses_impossible_threads(threads, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        command.main(["lean_import", "--threads", threads])
    assert stopped.value.code == 2
    assert "must be a whole number from 1" in capsys.readouterr().err


def test_quick_runs_are_not_stored(context: Context, tmp_path: Path):
    outcome = Outcome(checks=(Check(what="speed", ours=2.0, bar=1.0),))
    with pytest.raises(ValueError, match="quick"):
        results.store("fast", outcome, replace(context, quick=True), folder=tmp_path)


def test_page_shows_the_stored_result(context: Context, tmp_path: Path):
    claim = Claim("fast", "It is fast.", "at least 1", lambda context: outcome)
    check = compared("speed", {"rival": 1.5, OURS: 2.0}, bar=1.0, spread=(1.9, 2.1))
    outcome = Outcome(checks=(check,), notes=("a note",), versions={"rivalpackage": "7.0"})
    results.store("fast", outcome, context, folder=tmp_path)
    page = results.page([claim], folder=tmp_path)
    assert "| speed | 2 | ≥ 1 | 1.9 to 2.1 | rival 1.5 | yes |" in page
    assert all(text in page for text in ("It is fast.", "a note", "rivalpackage 7.0", "cores"))


def test_page_says_what_was_not_measured(tmp_path: Path):
    claim = Claim("fast", "It is fast.", "at least 1", lambda context: Outcome(checks=()))
    assert "Not measured yet." in results.page([claim], folder=tmp_path)


def test_page_refuses_results_of_another_version(tmp_path: Path):
    (tmp_path / "fast.json").write_text('{"version": 0}')
    claim = Claim("fast", "It is fast.", "at least 1", lambda context: Outcome(checks=()))
    with pytest.raises(InputError, match="version 0"):
        results.page([claim], folder=tmp_path)


@pytest.fixture
def echo(tmp_path: Path) -> rivals.Rival:
    """A rival that needs nothing and answers with the sum of what it was given."""
    script = tmp_path / "echo.py"
    script.write_text(
        "import json, pathlib, sys, zipfile\n"
        "job, arrays, result = map(pathlib.Path, sys.argv[1:])\n"
        "if json.loads(job.read_text()).get('fail'): sys.exit('it broke')\n"
        "names = zipfile.ZipFile(arrays).namelist()\n"
        "told = {'names': names, 'prefix': sys.prefix}\n"
        "result.write_text(json.dumps(told | json.loads(job.read_text())))\n"
    )
    return rivals.Rival("echo", (), script)


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rivals, "ENVIRONMENTS", tmp_path / "environments")
    return tmp_path / "environments"


def test_rival_runs_in_an_environment_of_its_own(echo: rivals.Rival, environments: Path, tmp_path: Path):
    answer = rivals.run(echo, {"question": 1}, arrays={"a": np.zeros(2)}, work=tmp_path / "work")
    assert answer["question"] == 1
    assert answer["names"] == ["a.npy"]
    assert Path(answer["prefix"]).parent == environments


def test_rival_failure_tells_its_last_words(echo: rivals.Rival, environments: Path, tmp_path: Path):
    with pytest.raises(RuntimeError, match="it broke"):
        rivals.run(echo, {"fail": True}, arrays={}, work=tmp_path / "work")


def test_environment_is_made_once(echo: rivals.Rival, environments: Path):
    python = rivals.environment(echo)
    (python.parent / "mark").touch()
    assert rivals.environment(echo) == python
    assert (python.parent / "mark").exists()


def test_environment_of_another_interpreter_is_built_again(echo: rivals.Rival, environments: Path):
    python = rivals.environment(echo)
    (python.parent / "mark").touch()
    stamp = next(environments.glob("*/flyweight-rival.json"))
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"python": "2.7"}))
    rivals.environment(echo)
    assert not (python.parent / "mark").exists()


def test_environment_that_pip_cannot_make_is_a_missing_dependency(echo: rivals.Rival, environments: Path):
    impossible = rivals.Rival("echo", ("./no-such-folder-to-install",), echo.script)
    with pytest.raises(MissingDependency, match="echo cannot be made"):
        rivals.environment(impossible)


def test_environment_depends_on_the_constraints(echo: rivals.Rival, environments: Path, tmp_path: Path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==1.0\n")
    assert rivals.environment(echo) != rivals.environment(echo, constraints=constraints)


def test_shipped_files_are_counted_from_the_disk(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"x" * 100)
    (tmp_path / "report.html").write_bytes(b"x" * 5000)
    manifest = json.dumps({"files": {"model.onnx": {"bytes": 1}}})
    (tmp_path / "manifest.json").write_text(manifest)
    attempt = newcomer.Attempt(exit_code=0, seconds=3.0, out=tmp_path, message="")
    assert attempt.storage_bytes() == 100 + len(manifest)
    assert attempt.time_check("net").holds


def test_refused_attempt_has_no_file_and_says_why(tmp_path: Path):
    attempt = newcomer.Attempt(exit_code=3, seconds=3.0, out=tmp_path, message="table\nit is slower\n\n")
    assert attempt.model_file is None
    assert attempt.storage_bytes() is None
    assert attempt.notes("net") == ("net: ended with exit code 3: it is slower",)
    assert not attempt.time_check("net").holds


def test_cifar10_sheets_are_cut_row_by_row(tmp_path: Path):
    from PIL import Image

    tiles = np.random.default_rng(0).integers(256, size=(1000, 32, 32, 3), dtype=np.uint8)
    sheet = tiles.reshape(25, 40, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(800, 1280, 3)
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    Image.fromarray(sheet).save(folder / "test_00.webp", lossless=True)
    (folder / "test_labels.csv").write_text("index,label,class\n0,5,dog\n1,6,frog\n2,0,airplane\n")
    np.testing.assert_array_equal(cifar10.images(tmp_path, "test", sheets=1), tiles)
    np.testing.assert_array_equal(cifar10.labels(tmp_path, "test", examples=2), [5, 6])


def test_normalised_images_have_channels_first():
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    pixels[..., 1] = 255
    images = cifar10.normalised(pixels)
    assert (images.shape, images.dtype) == ((2, 3, 32, 32), np.float32)
    np.testing.assert_allclose(images[0, 1], (1 - 0.456) / 0.224, rtol=1e-6)


def test_cifar10_without_data_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cifar10.SHARED_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="--shared"):
        cifar10.load()


def test_stsb_is_read_without_a_header(tmp_path: Path):
    (tmp_path / "dev.csv").write_text('A man runs.,"A man, running.",4.5\nA cat.,A dog.,1.0\n')
    pairs = stsb(tmp_path / "dev.csv")
    assert pairs.second == ["A man, running.", "A dog."]
    np.testing.assert_array_equal(pairs.gold, [4.5, 1.0])


def test_banking77_is_thinned_evenly(tmp_path: Path):
    rows = "".join(f"question {i},intent {i % 3}\n" for i in range(11))
    (tmp_path / "test.csv").write_text("text,category\n" + rows)
    assert banking77(tmp_path / "test.csv", 3).texts == ["question 0", "question 5", "question 10"]
    assert len(banking77(tmp_path / "test.csv", None).texts) == 11


def test_grouped_network_is_the_same_every_time():
    first, second = grouped.network(), grouped.network()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_grouped_network_leaves_the_global_seed_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    grouped.network()
    assert torch.equal(torch.rand(1), expected)
