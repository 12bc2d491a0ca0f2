"""The command line from end to end on a small network, and what each flag sets."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import flyweight
from command_line import CLASSES, EXAMPLES, FEATURES, call, write_files
from flyweight import pipeline
from flyweight.cli import app
from flyweight.cli_reference import page
from flyweight.core.cost import Budget
from flyweight.recover.settings import TrainingSettings
from flyweight.run.artifact import read_manifest, write_manifest
from flyweight.run.manifest import TensorSpec
from flyweight.settings import DEFAULT_CALIBRATION_SIZE, DEFAULT_SECONDS, DataSettings, Settings
from tests.run.small_artifacts import total, write_artifact

COMMANDS = ("compress", "run", "evaluate", "benchmark", "export", "inspect", "demo", "techniques")
NET = ("nets.py:net", "--weights", "net.safetensors", "--data", "data.npz")
FAST = ("--technique", "dynamic_int8", "--max-latency", "1s", "--max-drop", "5%", "--seconds", "0.05")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command line in a folder with the files of `write_files`."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(capsys, arguments)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact made by the command in a process of its own."""
    folder = tmp_path_factory.mktemp("made")
    write_files(folder)
    line = [sys.executable, "-m", "flyweight", "compress", *NET, *FAST, "-o", "small"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Shipped" in done.stdout
    return folder / "small"


def test_compress_writes_a_whole_artifact(small: Path):
    names = {path.name for path in small.iterdir()}
    assert names == {"model.onnx", "manifest.json", "plan.json", "report.json", "report.html"}
    assert read_manifest(small).status == "shipped"


def test_run_writes_answers(small: Path, command: Command):
    code, _, errors = command("run", small, "--input", "new.npz", "--output", "answers.csv")
    assert (code, errors) == (0, "")
    with Path("answers.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5


def test_run_prints_json_lines_without_output(small: Path, command: Command):
    _, printed, _ = command("run", small, "--input", "new.npz")
    assert all("label" in json.loads(line) for line in printed.splitlines())


def write_table(path: str, columns: int) -> None:
    """The rows of ``new.npz`` as a table with a header, without or with more columns than it has."""
    with np.load("new.npz") as data:
        rows = np.pad(data["x"], ((0, 0), (0, 1)))[:, :columns]
    header = ",".join(f"feature {i}" for i in range(columns))
    np.savetxt(path, rows, delimiter=",", header=header, comments="", fmt="%.9g")


def test_a_model_that_takes_a_matrix_answers_a_table_of_its_columns(small: Path, command: Command):
    write_table("new.csv", FEATURES)
    assert command("run", small, "--input", "new.csv")[:2] == command("run", small, "--input", "new.npz")[:2]


def test_a_table_with_another_number_of_columns_is_refused_with_both_counts(small: Path, command: Command):
    write_table("new.csv", FEATURES + 1)
    code, _, errors = command("run", small, "--input", "new.csv")
    assert code == 1
    assert f"takes {FEATURES} features, the data have {FEATURES + 1} columns" in errors
    assert len(errors.splitlines()) == 1


def test_evaluate_measures_an_artifact_on_all_of_new_data(small: Path, command: Command):
    code, printed, _ = command("evaluate", small, "--data", "data.npz", "--json")
    assert code == 0
    assert json.loads(printed)["estimate"]["value"] > 0.9


def test_evaluate_measures_a_model_in_pytorch(command: Command):
    code, printed, _ = command("evaluate", *NET, "--runtime", "pytorch")
    assert code == 0
    assert printed.startswith("top-1 accuracy 1.0000")
    assert printed.splitlines()[0].endswith("on all 120 examples")


def test_evaluate_measures_what_a_plan_makes_of_a_model(small: Path, command: Command):
    given = ("--technique", "weight_only+static_activations", "--bits", "4", "--set", "activation_bits=4")
    code, printed, errors = command("evaluate", *NET, *given, "--set", "edge_bits=4")
    assert code == 0, errors
    assert printed.startswith("top-1 accuracy 0.")
    assert "runnable nowhere else: no ONNX file holds activations of 4 bits" in " ".join(printed.split())
    code, printed, errors = command("evaluate", *NET, "--plan", small / "plan.json")
    assert code == 0, errors
    assert "measured in PyTorch, not on a file" in printed


def test_evaluate_carries_nothing_out_on_an_artifact(small: Path, command: Command):
    code, _, errors = command("evaluate", small, "--data", "data.npz", "--technique", "weight_only")
    assert code == 2
    assert "techniques and training are for models" in " ".join(errors.split())


def test_evaluate_goes_on_with_no_training(command: Command):
    code, _, errors = command("evaluate", *NET, "--epochs", "1", "--resume")
    assert code == 2
    assert "evaluate keeps no state of a training" in " ".join(errors.split())


def test_evaluate_says_which_examples_were_used_and_which_classes_have_too_few(
    small: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(small.parent)
    code, printed, _ = command("evaluate", "small", "--data", "data.npz")
    assert code == 0
    assert "on 30 of 120 examples: held out when it was made" in printed
    assert "with too few examples to tell: class " in printed


@pytest.mark.parametrize(
    "flags", [("--rescale", "0.5"), ("--weights", "net.safetensors"), ("--model-arg", "n=9")]
)
def test_evaluate_refuses_what_an_artifact_brings_itself(
    flags: tuple[str, str], small: Path, command: Command
):
    code, _, errors = command("evaluate", small, "--data", "data.npz", *flags)
    assert code == 2
    assert "is an artifact, which brings its own weights and preprocessing" in errors


def test_evaluate_does_not_run_the_code_of_an_artifacts_own_metric_unasked(small: Path, command: Command):
    folder = Path("theirs")
    shutil.copytree(small, folder)
    write_manifest(folder, replace(read_manifest(folder), task="metric.py:mine", task_settings={}))
    code, _, errors = command("evaluate", folder, "--data", "data.npz")
    assert code == 1
    assert "give it with --task metric.py:mine" in errors
    Path("metric.py").write_text(
        "def mine(outputs, targets):\n    return outputs.argmax(axis=1) == targets\n"
    )
    code, printed, errors = command("evaluate", folder, "--data", "data.npz", "--task", "metric.py:mine")
    assert code == 0, errors
    assert printed.startswith("mine ")


def test_benchmark_compares_two_artifacts(small: Path, command: Command):
    code, printed, _ = command("benchmark", small, "--against", small, "--seconds", "0.05", "--json")
    first, last = json.loads(printed)
    assert code == 0
    assert first["speedup"]["low"] <= first["speedup"]["value"] <= first["speedup"]["high"]
    assert last["speedup"] is None


@pytest.mark.parametrize(
    "line",
    [
        ("compress", *NET, "-o", "out", "--runtime", "pytorch"),
        ("run", "SMALL", "--input", "new.npz", "--runtime", "pytorch"),
        ("evaluate", "SMALL", "--data", "data.npz", "--runtime", "pytorch"),
        ("benchmark", "SMALL", "--runtime", "pytorch"),
    ],
)
def test_a_runtime_that_runs_no_file_is_refused_at_once(
    line: tuple[str, ...], small: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    def begun(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(pipeline, "compress", begun)
    code, _, errors = command(*(str(small) if word == "SMALL" else word for word in line))
    assert code == 2
    assert "pytorch does not run onnx files; known: onnxruntime, openvino" in errors


def test_benchmark_says_that_a_length_changes_nothing(small: Path, command: Command):
    code, printed, errors = command("benchmark", small, "--seconds", "0.05", "--length", "512")
    assert code == 0
    assert errors == f"flyweight: no input of {small} varies in length: --length 512 changes nothing\n"
    assert f"input 1\N{MULTIPLICATION SIGN}{FEATURES}" in " ".join(printed.split())


def test_benchmark_shows_the_length_it_used(command: Command):
    varies = {
        "inputs": (TensorSpec("x", "float32", ("batch", "n")),),
        "outputs": (TensorSpec("y", "float32", ()),),
    }
    write_artifact(Path("sums"), total(("batch", "n")), **varies)
    code, printed, errors = command("benchmark", "sums", "--seconds", "0.05", "--length", "5")
    assert (code, errors) == (0, "")
    assert "x 1\N{MULTIPLICATION SIGN}5" in printed


@pytest.mark.parametrize(("name", "flag"), [("run", "--seconds"), ("evaluate", "--seconds")])
def test_commands_offer_no_option_without_effect(name: str, flag: str, command: Command):
    assert flag not in command(name, "--help")[1]


@pytest.mark.parametrize(
    ("name", "flag", "default"),
    [
        ("compress", "--seconds", f"{DEFAULT_SECONDS:g} by default"),
        ("compress", "--threads", "0, the default"),
        ("compress", "--calibration-size", f"{DEFAULT_CALIBRATION_SIZE} by default"),
        ("compress", "--batch-size", "1 by default"),
        ("run", "--batch-size", "32"),
        ("benchmark", "--length", "128 by default"),
    ],
)
def test_help_shows_defaults(name: str, flag: str, default: str):
    rows = page(app).partition(f"## flyweight {name}\n")[2].partition("## flyweight")[0]
    assert default in next(row for row in rows.splitlines() if f"`{flag}`" in row)


def test_evaluate_says_that_its_model_may_be_an_artifact():
    rows = page(app).partition("## flyweight evaluate\n")[2]
    assert "A folder that compress or export wrote" in next(r for r in rows.splitlines() if "`MODEL`" in r)


def test_benchmark_prints_a_table(small: Path, command: Command):
    code, printed, _ = command("benchmark", small, "--seconds", "0.05")
    assert code == 0
    assert "peak memory" in " ".join(printed.split())


def test_export_carries_out_a_plan_without_judging_it(small: Path, command: Command):
    code, printed, errors = command("export", *NET, "--plan", small / "plan.json", "-o", "exported")
    assert code == 0, errors
    assert "written to exported" in printed
    assert read_manifest(Path("exported")).status == "exported"
    assert (Path("exported") / "model.onnx").stat().st_size == (small / "model.onnx").stat().st_size


def test_labels_in_the_models_own_order_of_classes_are_right_and_answered_by_name(command: Command):
    order = ("open", "close", "ajar")  # of the outputs; sorted, the names would be in another
    with np.load("data.npz") as data:
        rows = [(*values, order[label]) for values, label in zip(data["x"], data["y"], strict=True)]
    header = [*(f"feature {i}" for i in range(FEATURES)), "label"]
    with Path("data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    net = (*NET[:-1], "data.csv")
    code, _, errors = command(
        "compress", *net, *FAST, "--max-drop", "50%", "--classes", ",".join(order), "-o", "small"
    )
    assert code == 0, errors
    assert read_manifest(Path("small")).classes == order
    report = json.loads(Path("small/report.json").read_text())
    assert report["original"]["quality"]["value"] == 1.0
    answers = command("run", "small", "--input", "data.csv")[1].splitlines()
    given = [json.loads(line)["label"] for line in answers]
    assert np.mean([mine == row[-1] for mine, row in zip(given, rows, strict=True)]) > 0.8
    code, printed, _ = command("evaluate", "small", "--data", "data.csv", "--json")
    assert json.loads(printed)["estimate"]["value"] > 0.8


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("open,close,ajar,gone", "the model has 3 outputs, and classes names 4"),
        ("open,close", "label 2 of the data is out of range: 2 classes"),
        ("a,b,b", "classes names 'b' twice"),
    ],
)
def test_names_that_are_not_those_of_the_outputs_are_refused(classes: str, message: str, command: Command):
    code, _, errors = command("compress", *NET, *FAST, "--classes", classes, "-o", "small")
    assert code == 1
    assert message in errors


def test_what_does_not_fit_is_refused_with_exit_code_three(command: Command):
    code, printed, errors = command("compress", *NET, *FAST, "--max-size", "1kB", "-o", "small")
    assert code == 3, errors
    assert "Refused" in printed
    assert errors.startswith("flyweight: refused: it takes ")
    assert len(errors.splitlines()) == 1
    assert not Path("small").exists()
    assert read_manifest(Path("small-refused")).status == "refused"


def test_a_refusal_says_that_the_artifact_that_was_there_stays(command: Command):
    assert command("export", *NET, "-o", "small")[0] == 0
    code, _, errors = command("compress", *NET, *FAST, "--max-size", "1kB", "-o", "small", "--overwrite")
    assert code == 3, errors
    assert "the artifact that was in small before is still there" in errors
    assert "nothing is in" not in errors
    assert read_manifest(Path("small")).status == "exported"


def test_techniques_are_listed_with_what_they_do(command: Command):
    code, printed, _ = command("techniques")
    assert code == 0
    assert "dynamic_int8 Dynamic W8A8" in " ".join(printed.split())


@pytest.fixture
def settings(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """The settings that ``compress`` hands to the pipeline for some flags."""
    seen: list[Settings] = []

    class _Stop(Exception):
        pass

    def stop(given: Settings, **_: object) -> None:
        seen.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "compress", stop)

    def parsed(*flags: str) -> Settings:
        code, _, errors = command("compress", *flags)
        assert code == 130, errors
        return seen[-1]

    return parsed


def test_every_flag_reaches_its_setting(settings: Callable[..., Settings]):
    given = settings(
        *NET,
        *("--task", "classification", "--top-k", "2", "--model-arg", "hidden=9", "--model-arg", "deep=True"),
        *("--max-size", "25MB", "--max-latency", "15ms", "--max-drop", "0.5%", "--max-ram", "1GB"),
        *("--max-energy", "5mJ", "--evaluation-fraction", "0.3"),
        *("--technique", "weight_only", "--technique", "static_int8", "--bits", "4", "--group-size", "32"),
        *("--granularity", "group", "--set", "range_method=mse", "--plan", "plan.json"),
        *("--input-column", "a", "--input-column", "b", "--target-column", "c", "--slice", "d"),
        *("--classes", "x, y,z", "--calibration-size", "7", "--evaluation-size", "8", "--seed", "9"),
        *("--resize", "256", "--crop", "224x192"),
        *("--rescale", "1/255", "--mean", "0.1,0.2", "--std", "imagenet"),
        *("--max-length", "64", "--tokenizer", "t.json", "--preprocess", "channels_last=true"),
        *("--runtime", "openvino", "--threads", "2", "--batch-size", "3", "--seconds", "0.5"),
        *("-o", "small", "--overwrite"),
    )  # fmt: skip
    assert given == Settings(
        model="nets.py:net",
        weights="net.safetensors",
        data="data.npz",
        out="small",
        task_settings={"top_k": 2},
        classes=("x", "y", "z"),
        model_arguments={"hidden": 9, "deep": True},
        preprocessing={
            "resize": 256,
            "crop": [224, 192],
            "rescale": 1 / 255,
            "mean": [0.1, 0.2],
            "std": "imagenet",
            "max_length": 64,
            "tokenizer": "t.json",
            "channels_last": True,
        },
        techniques=("weight_only", "static_int8"),
        technique_settings={"bits": 4, "granularity": "group", "group_size": 32, "range_method": "mse"},
        plan="plan.json",
        budget=Budget(storage_bytes=25e6, latency_s=0.015, quality_drop=0.005, ram_bytes=1e9, energy_j=0.005),
        data_settings=DataSettings(
            inputs=("a", "b"),
            target="c",
            slices=("d",),
            calibration_size=7,
            evaluation_size=8,
            evaluation_fraction=0.3,
            seed=9,
        ),
        runtime="openvino",
        threads=2,
        batch_size=3,
        seconds=0.5,
        overwrite=True,
    )


def test_every_setting_has_a_flag(command: Command):
    shown = " ".join(command("compress", "--help")[1].split())
    named = {"technique_settings": "--set", "techniques": "--technique", "inputs": "--input-column"}
    named |= {"model": "MODEL", "target": "--target-column", "slices": "--slice", "task_settings": "--top-k"}
    named |= {"model_arguments": "--model-arg", "preprocessing": "--preprocess"}
    rarely = {field.name for field in fields(TrainingSettings)} - {"epochs", "learning_rate", "train_seconds"}
    named |= dict.fromkeys(rarely, "--training")
    keys = set(Settings(model="m", data="d", out="o").to_dict()) - {"format"}  # there is one format
    assert [key for key in keys if named.get(key, f"--{key.replace('_', '-')}") not in shown] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--max-energy", "5kg"), "5mJ"), (("--evaluation-fraction", "1"), "between 0 and 1, got 1.0")],
)
def test_a_bound_out_of_range_is_told_with_what_to_write(
    flags: tuple[str, str], message: str, command: Command
):
    code, _, errors = command("compress", *NET, *flags, "-o", "small")
    assert code in (1, 2)
    assert message in errors


def test_normalize_imagenet_sets_mean_and_std(settings: Callable[..., Settings]):
    given = settings(*NET, "--normalize", "imagenet", "-o", "small")
    assert given.preprocessing == {"mean": "imagenet", "std": "imagenet"}


def test_a_settings_file_in_the_folder_is_used_and_flags_come_first(settings: Callable[..., Settings]):
    Path("flyweight.yaml").write_text(
        "model: nets.py:net\ndata: data.npz\nout: small\nmax_size: 1MB\nthreads: 2\n"
        "preprocessing: {rescale: 2, mean: 1}\n"
    )
    given = settings("--threads", "1", "--rescale", "3")
    assert (given.model, given.threads, given.budget.storage_bytes) == ("nets.py:net", 1, 1e6)
    assert given.preprocessing == {"rescale": 3.0, "mean": 1}


def test_the_settings_file_is_left_alone_when_a_model_is_given(settings: Callable[..., Settings]):
    Path("flyweight.yaml").write_text("threads: 2\n")
    assert settings(*NET, "-o", "small").threads == 0
    assert settings(*NET, "-o", "small", "--config", "flyweight.yaml").threads == 2


def test_the_report_of_a_run_is_a_settings_file_again(small: Path, settings: Callable[..., Settings]):
    recorded = json.loads((small / "report.json").read_text())["settings"]
    Path("flyweight.yaml").write_text(json.dumps(recorded))
    assert settings().to_dict() == recorded


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str, command: Command):
    code, printed, errors = command(name, "--help")
    assert (code, errors) == (0, "")
    assert f"Example: flyweight {name}" in " ".join(printed.split())


def test_no_command_shows_the_help(command: Command):
    code, printed, _ = command()
    assert code == 0
    assert all(name in printed for name in COMMANDS)


def test_version_is_printed(command: Command):
    assert command("--version")[:2] == (0, f"{flyweight.__version__}\n")


def test_ctrl_c_is_one_line_and_exit_code_130(command: Command, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "compress", interrupted)
    code, _, errors = command("compress", *NET, "-o", "small")
    assert code == 130
    assert errors == "flyweight: interrupted; nothing half-made is left\n"


@pytest.mark.parametrize("flags", [(), ("--traceback",)])
def test_an_unexpected_error_is_one_line_unless_more_is_asked(
    command: Command, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(pipeline, "compress", broken)
    code, _, errors = command("compress", *NET, "-o", "small", *flags)
    assert code == 1
    assert "unexpected KeyError: 'x'; this is a bug" in errors
    assert ("Traceback" in errors) is bool(flags)
    assert flags or len(errors.splitlines()) == 1


def test_quiet_prints_nothing(small: Path, command: Command):
    assert command("evaluate", small, "--data", "data.npz", "--quiet") == (0, "", "")


def python(program: str, folder: Path) -> str:
    line = [sys.executable, "-c", program]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_importing_the_command_line_loads_neither_torch_nor_numpy(tmp_path: Path):
    program = "import sys, flyweight.cli; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert python(program, tmp_path).strip() == "[]"


def test_run_does_not_load_torch(small: Path, tmp_path: Path):
    write_files(tmp_path)
    program = (
        "import sys; from flyweight import cli, cli_command\n"
        f"line = ['run', {str(small)!r}, '--input', 'new.npz', '--output', 'a.csv']\n"
        "print(cli_command.run(cli.app, line), 'torch' in sys.modules)"
    )
    assert python(program, tmp_path).splitlines()[-1] == "0 False"


def test_the_data_of_these_tests_hold_every_class(tmp_path: Path):
    write_files(tmp_path)
    with np.load(tmp_path / "data.npz") as data:
        assert len(data["y"]) == EXAMPLES
        assert len(np.unique(data["y"])) == CLASSES
