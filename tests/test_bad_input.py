"""What is wrong with what the user gives is one clear sentence, a non-zero exit code, and nothing written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from command_line import FEATURES, call, network, write_files
from flyweight import cli_command
from flyweight.cli import app

DATA = "--data data.npz -o small"
NET = f"compress nets.py:net {DATA}"
WEIGHTS = f"{NET} --weights bad.safetensors"
BAD_DATA = "compress nets.py:net --data bad.npz -o small"
IMAGES = "compress nets.py:image_net --data images -o small"
CONFIG = f"{NET} --config bad.yaml"
PLAN = f"{NET} --plan bad.json"
RUN = "run made --input new.npz --output answers.csv"

NAN = np.full(128, np.nan, np.float32)


@final
@dataclass(frozen=True)
class Case:
    """A command line that cannot work.

    Attributes:
        line: Its arguments, split at spaces.
        told: Part of the one line it ends with.
        prepare: Makes the bad input in the current folder.
        code: Its exit code.
    """

    name: str
    line: str
    told: str
    prepare: Callable[[], object] = lambda: None
    code: int = 1


def save_data(**changes: np.ndarray) -> Callable[[], None]:
    """``bad.npz``: as ``data.npz``, with changes."""

    def save() -> None:
        with np.load("data.npz") as data:
            np.savez("bad.npz", **(dict(data) | changes))

    return save


def with_nan() -> np.ndarray:
    x = random(120, FEATURES)
    x[3, 5] = np.nan
    return x


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def save_weights(changes: Mapping[str, np.ndarray | None]) -> Callable[[], None]:
    """``bad.safetensors``: the network's weights with changes; None leaves one out."""

    def save() -> None:
        weights = network().state_dict() | {
            k: torch.from_numpy(v) for k, v in changes.items() if v is not None
        }
        save_file({k: v for k, v in weights.items() if changes.get(k, v) is not None}, "bad.safetensors")

    return save


def plan(technique: str, layer: str, **settings: int) -> Callable[[], object]:
    """``bad.json``: a plan with one decision."""
    decision = {"technique": technique, "stage": "quantize", "layers": [layer], "settings": settings}
    return text("bad.json", json.dumps({"version": 1, "model": "other", "decisions": [decision]}))


def own_folder() -> None:
    Path("small").mkdir()
    Path("small/mine").write_text("x")


def truncated_weights() -> None:
    whole = Path("net.safetensors").read_bytes()
    Path("bad.safetensors").write_bytes(whole[: len(whole) // 2])


def pickled_weights() -> None:
    torch.save(network().state_dict(), "bad.safetensors")


def pickle_with_code() -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, ("small",)

    Path("bad.pt").write_bytes(pickle.dumps(Payload(), protocol=2))


def broken_image() -> None:
    pillow = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        folder = Path("images") / name
        folder.mkdir(parents=True)
        for index in range(4):
            pillow.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    (Path("images") / "dog" / "2.png").write_bytes(b"no picture")


def text(path: str, content: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(content)


def artifact() -> None:
    shutil.copytree(Path("..") / "made", "made")


def damaged_artifact() -> None:
    artifact()
    with Path("made/model.onnx").open("r+b") as file:
        file.seek(30)
        file.write(b"XXXX")


def foreign_manifest() -> None:
    artifact()
    Path("made/manifest.json").write_text('{"name": "a web app"}')


def wrong_new_data() -> None:
    artifact()
    np.savez("new.npz", x=np.zeros((2, 5), np.float32))


MODEL_CASES = [
    Case("missing model file", f"compress no.py:net {DATA}", "there is no file no.py"),
    Case("model before data", "compress no.py:net --data gone.npz -o small", "there is no file no.py"),
    Case("model before data to evaluate", "evaluate no.py:net --data gone.npz", "there is no file no.py"),
    Case("an artifact as the model", f"compress made {DATA}", "made is an artifact", lambda: artifact()),
    Case("folder of weights", f"{NET} --weights .", "weights . is a folder"),
    Case("missing factory", f"compress nets.py:nett {DATA}", "nets.py has no 'nett'; it has net"),
    Case("missing module", f"compress nowhere.nets:net {DATA}", "No module named 'nowhere'"),
    Case("missing folder", f"compress ./minilm {DATA}", "model ./minilm does not exist"),
    Case("folder of nothing", f"compress hf {DATA}", "holds no config.json", lambda: Path("hf").mkdir()),
    Case("factory that raises", f"compress nets.py:breaks {DATA}", "raised ValueError: no weights today"),
    Case("no module", f"compress nets.py:text {DATA}", "returned a str; it must return an nn.Module"),
    Case("wrong argument", f"{NET} --model-arg depth=3", "unexpected keyword argument 'depth'"),
    Case("wrong input shape", BAD_DATA, "inputs input (1, 5) float32", save_data(x=random(120, 5))),
    Case("missing weights file", WEIGHTS, "there is no weights file bad.safetensors"),
    Case("NaN weights", WEIGHTS, "weight '0.bias' of 'nets.py:net' holds NaN", save_weights({"0.bias": NAN})),
    Case("missing weights", WEIGHTS, "1 missing: 0.bias", save_weights({"0.bias": None})),
    Case("other shapes", WEIGHTS, "0.bias (7,) (the model has (128,))", save_weights({"0.bias": random(7)})),
    Case("truncated safetensors", WEIGHTS, "damaged, cut short or no safetensors", truncated_weights),
    Case("pickle named safetensors", WEIGHTS, "is a pickle and no safetensors file", pickled_weights),
    Case("pickle with code", f"{NET} --weights bad.pt", "a pickle with more than tensors", pickle_with_code),
]

DATA_CASES = [
    Case("missing data", BAD_DATA, "there is no file or folder bad.npz"),
    Case("empty data", BAD_DATA, "data are empty", save_data(x=random(0, FEATURES), y=np.arange(0))),
    Case("NaN data", BAD_DATA, "not finite in example 3", save_data(x=with_nan())),
    Case("labels out of range", BAD_DATA, "the model has 3 outputs", save_data(y=np.arange(120) % 5)),
    Case("negative label", BAD_DATA, "target -1", save_data(y=np.full(120, -1))),
    Case("lengths differ", BAD_DATA, "differ in length", save_data(y=np.zeros(7, np.int64))),
    Case("no targets", BAD_DATA, "target", lambda: np.savez("bad.npz", x=random(9, FEATURES))),
    Case("pickled array", BAD_DATA, "bad.npz", lambda: np.savez("bad.npz", x=np.array([{}, {}]))),
    Case("damaged data", BAD_DATA, "bad.npz", text("bad.npz", "PK\x03\x04 not really")),
    Case("data of no kind", "compress nets.py:net --data nets.py -o small", "of no known kind"),
    Case("unreadable image", IMAGES, "cannot read the image", broken_image),
    Case("loader that raises", "compress nets.py:net --data nets.py:breaks -o small", "no weights today"),
    Case("missing column", f"{NET} --input-column z", "'z'"),
]

SETTINGS_CASES = [
    Case("unknown task", f"{NET} --task clasification", "did you mean 'classification'", code=2),
    Case("unknown technique", f"{NET} --technique static_int4", "did you mean 'static_int8'", code=2),
    Case("unknown runtime", f"{NET} --runtime onnxruntim", "did you mean 'onnxruntime'", code=2),
    Case(
        "runtime of modules",
        f"{NET} --runtime pytorch",
        "pytorch does not run onnx files; known: onnxruntime, openvino",
        code=2,
    ),
    Case("unknown flag", f"{NET} --max-sise 25MB", "--max-sise", code=2),
    Case("unknown command", "compres nets.py:net", "compres", code=2),
    Case("unknown setting", f"{NET} --technique weight_only --set bitz=4", "no setting 'bitz'"),
    Case("bits out of range", f"{NET} --technique weight_only --bits 99", "got 99"),
    Case("negative budget", f"{NET} --max-size -1MB", "must be above 0, got -1MB", code=2),
    Case("zero budget", f"{NET} --max-size 0", "must be above 0, got 0", code=2),
    Case("size without a unit", f"{NET} --max-size 25", "give one: 25MB or 25B", code=2),
    Case("latency without a unit", f"{NET} --max-latency 15", "give one: 15ms or 15s", code=2),
    Case("drop of all there is", f"{NET} --max-drop 1", "write 1% or 0.01"),
    Case("factor in words", f"{NET} --rescale half", "write for example 1/255", code=2),
    Case("budget in words", f"{NET} --max-size abc", "is not a size; write for example 25MB", code=2),
    Case("latency in bytes", f"{NET} --max-latency 5MB", "is not a time; write for example 15ms", code=2),
    Case("negative drop", f"{NET} --max-drop=-1%", "a drop must be at least 0", code=2),
    Case("negative threads", f"{NET} --threads=-1", "--threads", code=2),
    Case("no model", f"compress {DATA}", "no model is given", code=2),
    Case("no output folder", "compress nets.py:net --data data.npz", "no out is given", code=2),
    Case("no equals sign", f"{NET} --model-arg hidden", "write NAME=VALUE, got 'hidden'", code=2),
    Case("unknown key", CONFIG, "did you mean 'threads'", text("bad.yaml", "thread: 2\n")),
    Case("wrong type", CONFIG, "threads: must be a whole number", text("bad.yaml", "threads: two\n")),
    Case("no YAML", CONFIG, "is not YAML", text("bad.yaml", "a: [1,\n")),
    Case("missing settings file", CONFIG, "settings file bad.yaml cannot be read"),
    Case("no plan", PLAN, "plan is not JSON", text("bad.json", "{")),
    Case(
        "plan for other layers", PLAN, "'conv1', which 'net' does not", plan("weight_only", "conv1", bits=8)
    ),
    Case("plan of an unknown technique", PLAN, "no technique is called 'magic'", plan("magic", "0", bits=8)),
    Case("plan out of range", PLAN, "bits", plan("weight_only", "0", bits=99)),
    Case("unknown preprocessing", f"{NET} --preprocess resise=3", "preprocessing key 'resise' is unknown"),
    Case("preprocessing of another kind", f"{NET} --max-length 32", "'max_length' is for texts"),
]

OUTPUT_CASES = [
    Case("file in place of the folder", NET, "small is a file; name a folder", text("small", "mine")),
    Case("folder of other files", NET, "holds files that are no artifact", own_folder),
    Case("read-only output", "compress nets.py:net --data data.npz -o /proc/small", "/proc/small cannot be"),
]

ARTIFACT_CASES = [
    Case("no artifact", "run nothing --input new.npz --output answers.csv", "nothing is not a folder"),
    Case("damaged artifact", RUN, "made is damaged: model.onnx is not the file", damaged_artifact),
    Case("foreign folder", RUN, "made cannot be used", foreign_manifest),
    Case("wrong shape at run", RUN, "got float32 (2, 5)", wrong_new_data),
    Case("missing input", "run made --input gone.csv --output answers.csv", "gone.csv", artifact),
    Case("unknown answers", "run made --input new.npz --output answers.xyz", "ends in .csv", artifact),
    Case("no folder for answers", "run made --input new.npz --output gone/a.csv", "no folder gone", artifact),
    Case("benchmark of nothing", "benchmark nothing", "nothing is not a folder"),
    Case("batch that does not fit", "benchmark made --batch-size 0", "--batch-size", artifact, code=2),
    Case("evaluate without data", "evaluate made", "no data is given", artifact, code=2),
]

CASES = [*MODEL_CASES, *DATA_CASES, *SETTINGS_CASES, *OUTPUT_CASES, *ARTIFACT_CASES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds ``made``, an artifact that answers."""
    folder = tmp_path_factory.mktemp("bad")
    write_files(folder)
    paths = {"--weights": "net.safetensors", "--data": "data.npz", "-o": "made"}
    flags = [word for flag, name in paths.items() for word in (flag, str(folder / name))]
    assert cli_command.run(app, ["export", f"{folder / 'nets.py'}:net", *flags]) == 0
    return folder


@pytest.fixture
def folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, beside ``made``, with a model and data that work."""
    here = root / "here"
    here.mkdir()
    write_files(here)
    monkeypatch.chdir(here)
    yield here
    monkeypatch.undo()
    shutil.rmtree(here)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input_is_one_sentence(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.prepare()
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    code, printed, errors = call(capsys, case.line.split())
    assert case.told in errors
    assert len(errors.splitlines()) == 1, errors
    assert "Traceback" not in errors
    assert "this is a bug" not in errors
    assert printed == ""
    assert code == case.code
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


def test_there_are_at_least_twenty_kinds_of_bad_input() -> None:
    assert len(CASES) >= 20
    assert len({case.name for case in CASES}) == len(CASES)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "small" in path.name]


def test_a_full_disk_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, errors = call(capsys, NET.split())
    assert code == 1
    assert "the disk is full" in errors
    assert len(errors.splitlines()) == 1
    assert leftovers(folder) == []


SLOW = """
import time
from pathlib import Path

def load():
    Path("started").touch()
    time.sleep(100)
"""


def test_an_interrupted_run_leaves_nothing(folder: Path) -> None:
    (folder / "slow.py").write_text(SLOW)
    words = ["compress", "nets.py:net", "--data", "slow.py:load", "-o", "small"]
    line = [sys.executable, "-m", "flyweight", *words]
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers(folder), "the run claims its folder before it reads the data"
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "flyweight: interrupted; nothing half-made is left\n"
    assert printed == ""
    assert leftovers(folder) == []
