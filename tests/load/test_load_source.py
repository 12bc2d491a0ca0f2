"""What is wrong with the name of a model shows before data are read, and without running anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from flyweight._atomic import MANIFEST
from flyweight.errors import InputError, UnsupportedError
from flyweight.load.source import check_model_source
from flyweight.settings import Settings

NETS = """
import sys
from os.path import join as joined

if True:
    def made(): ...
try:
    import json as parser
except ImportError:
    parser = None
CONSTANT: int = 3
first, (second, *rest) = 1, (2, 3)
class Net: ...
raise SystemExit("it ran")
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    return tmp_path


def check(model: str, **changes: object) -> None:
    check_model_source(Settings(**({"model": model, "data": "d", "out": "o"} | changes)))


NAMES = ["made", "parser", "CONSTANT", "first", "second", "rest", "Net", "joined", "sys"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_a_module_binds_is_there(name: str) -> None:
    check(f"nets.py:{name}")


@pytest.mark.parametrize(
    "source",
    ["from os.path import *", "def __getattr__(name): ...", "globals()['net'] = 1", "exec('net = 1')"],
)
def test_names_that_only_running_would_show_are_left_to_the_loader(source: str) -> None:
    Path("dynamic.py").write_text(source)
    check("dynamic.py:net")


def test_modules_and_packages_are_found_without_importing_them(here: Path) -> None:
    (here / "package" / "inner").mkdir(parents=True)
    (here / "package" / "__init__.py").write_text("raise SystemExit('it ran')")
    (here / "package" / "inner" / "nets.py").write_text("def net(): ...")
    check("package.inner.nets:net")
    check("nets:made")
    check("torch.nn:Linear")
    with pytest.raises(InputError, match=r"No module named 'package\.inner\.net'"):
        check("package.inner.net:net")
    with pytest.raises(InputError, match=r"package.inner.nets has no 'nett'; it has net"):
        check("package.inner.nets:nett")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no.py:net", r"there is no file no\.py"),
        ("nets.py:mode", r"nets\.py has no 'mode'; it has Net"),
        ("nets.py", r"nets\.py names no function; write nets\.py:NAME"),
        ("nowhere.nets:net", "No module named 'nowhere'"),
        ("./minilm", "model ./minilm does not exist; name file.py:factory"),
        ("models", "model models does not exist; name file.py:factory"),
    ],
)
def test_what_is_not_there_is_told(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(model)


def test_a_file_that_is_no_python_is_told() -> None:
    Path("bad.py").write_text("def net(:\n")
    with pytest.raises(InputError, match=r"bad\.py is no Python: .* \(line 1\)"):
        check("bad.py:net")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("net.onnx", "ONNX"), ("net.TFLITE", "TensorFlow Lite"), ("net.h5", "Keras"), ("net.keras", "Keras")],
)
def test_formats_that_are_not_read_yet_are_named(name: str, kind: str) -> None:
    Path(name).write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=f"{name} is a {kind} model|{name} is an {kind} model"):
        check(name)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_weights_alone_are_no_model(name: str) -> None:
    Path(name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"holds weights alone; .* --weights {name}"):
        check(name)


def test_a_folder_needs_a_config(here: Path) -> None:
    (here / "hf").mkdir()
    with pytest.raises(InputError, match=r"hf holds no config\.json"):
        check("hf")
    (here / "hf" / "config.json").write_text("{}")
    check("hf")


def test_an_artifact_is_no_source(here: Path) -> None:
    (here / "small").mkdir()
    (here / "small" / MANIFEST).write_text('{"format_version": 1, "flyweight": "0.1.0"}')
    with pytest.raises(InputError, match=r"small is an artifact .*; name the model it was made from"):
        check("small")


def test_a_hub_id_is_left_to_the_hub() -> None:
    check("sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.parametrize(
    ("weights", "message"), [("gone.pt", r"no weights file gone\.pt"), ("folder", "folder is a folder")]
)
def test_missing_weights_are_told(here: Path, weights: str, message: str) -> None:
    (here / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        check("nets.py:made", weights=weights)


def test_a_folder_brings_its_own_weights(here: Path) -> None:
    (here / "hf").mkdir()
    (here / "hf" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="hf brings its own weights"):
        check("hf", weights="net.pt")
