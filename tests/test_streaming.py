"""Block by block gives what the whole in memory gives, whatever the way, and goes on where it was stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import ArtifactError, FlyweightError, InputError
from flyweight.load.streamed_model import load_streamed
from flyweight.load.tensor_files import open_tensors
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.streaming import StreamSettings, stream
from flyweight.tensors.encoded import encoded_layers
from flyweight.user_code import user_object
from streamed_stack import BLOCKS, stack_files, whole_module

FORM = {"bits": 3, "granularity": "group", "group_size": 8}
SHARDS = [f"block-{i:05d}.safetensors" for i in range(BLOCKS)]

KILLED_AFTER = """
import os, signal, sys
from pathlib import Path
from flyweight.streaming import StreamSettings, stream

class Kill:
    def track(self, items, label):
        for item in items:
            if item == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
    def stage(self, label):
        return open(os.devnull)

code, weights, data, out = sys.argv[1:]
stream(
    StreamSettings(
        model=f"{code}:make", weights=Path(weights), data=data, out=Path(out), technique_settings=FORM
    ),
    progress=Kill(),
)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return stack_files(tmp_path_factory.mktemp("stack"))


def asked(files: tuple[Path, Path, Path], out: Path, **others: Any) -> StreamSettings:
    code, weights, data = files
    given = {"technique_settings": FORM, "data": str(data)} | others
    return StreamSettings(model=f"{code}:make", weights=weights, out=out, **given)


@pytest.fixture(scope="module")
def result(files: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("result") / "out"
    stream(asked(files, out))
    return out


def make(files: tuple[Path, Path, Path]):
    def made():
        with user_object(f"{files[0]}:make") as factory:
            return factory()

    return made


def same_files(one: Path, other: Path, names: list[str]) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def batches_of(data: Path, size: int = 4) -> list[dict[str, torch.Tensor]]:
    arrays = dict(np.load(data))
    return [{n: torch.from_numpy(a[i : i + size]) for n, a in arrays.items()} for i in range(0, 10, size)]


def test_codes_are_those_of_the_whole_model_in_memory(files: tuple[Path, Path, Path], result: Path):
    code, weights, data = files
    batches = batches_of(data)
    model = Model("whole", whole_module(code, weights), {n: x[:1] for n, x in batches[0].items()})
    names = tuple(layer.name for layer in profile(model).layers if layer.name.startswith("layers."))
    whole = apply(model, Plan("whole", (Decision("gptq", names, Stage.QUANTIZE, FORM),)), batches)
    expected = {name: layer.encoding() for name, layer in encoded_layers(whole.module)}
    streamed = load_streamed(result, make(files))
    for index in range(BLOCKS):
        for name, layer in encoded_layers(streamed.block(index)):
            wanted = expected.pop(f"layers.{index}.{name}")
            assert torch.equal(layer.encoding().codes, wanted.codes)
            assert torch.equal(layer.encoding().scale, wanted.scale)
            assert torch.equal(layer.encoding().zero_point, wanted.zero_point)
    assert not expected
    torch.testing.assert_close(streamed(**batches[0]), whole.outputs(batches[0])[0], atol=1e-5, rtol=1e-5)


def test_activations_on_disk_give_the_same_files_and_are_gone(
    files: tuple[Path, Path, Path], result: Path, tmp_path: Path
):
    cache = tmp_path / "cache"
    cache.mkdir()
    stream(asked(files, tmp_path / "out", cache_dir=cache))
    assert same_files(tmp_path / "out", result, SHARDS)
    assert not list(cache.iterdir())


def test_a_run_that_was_killed_goes_on_to_the_same_files(
    files: tuple[Path, Path, Path], result: Path, tmp_path: Path
):
    out = tmp_path / "out"
    script = f"FORM = {FORM!r}\n{KILLED_AFTER}"
    done = subprocess.run([sys.executable, "-c", script, *map(str, files), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    unfinished = tmp_path / "out-unfinished"
    whole = unfinished / SHARDS[0]
    assert whole.is_file()
    assert not out.exists()
    stamp = whole.stat().st_mtime_ns
    (unfinished / SHARDS[1]).write_bytes(b"half")  # as a disk may leave it
    stream(asked(files, out))
    assert same_files(out, result, [*SHARDS, "rest.safetensors", "model.safetensors.index.json"])
    assert (out / SHARDS[0]).stat().st_mtime_ns == stamp
    assert not unfinished.exists()
    assert sorted(f.name for f in out.iterdir()) == sorted(f.name for f in result.iterdir())


def test_a_run_begun_with_other_settings_is_not_gone_on_with(files: tuple[Path, Path, Path], tmp_path: Path):
    settings = asked(
        files, tmp_path / "out", data=None, technique="weight_only", technique_settings={"bits": 4}
    )
    unfinished = tmp_path / "out-unfinished"
    unfinished.mkdir()
    journal = {"version": 1, "request": {"technique": "gptq"}, "done": {}}
    (unfinished / "progress.json").write_text(json.dumps(journal))
    with pytest.raises(InputError, match="holds a run towards out with another"):
        stream(settings)
    stream(replace(settings, overwrite=True))
    assert load_streamed(tmp_path / "out", make(files)).manifest.technique == "weight_only"


@pytest.mark.parametrize(
    ("technique", "form"),
    [
        ("weight_only", {"bits": 2}),
        ("normal_float", {}),
        ("binary", {}),
        ("float_storage", {"format": "float16"}),
    ],
)
def test_techniques_that_read_no_data_need_none(
    files: tuple[Path, Path, Path], tmp_path: Path, technique: str, form: dict[str, Any]
):
    code, weights, data = files
    stream(asked(files, tmp_path / "out", data=None, technique=technique, technique_settings=form))
    streamed = load_streamed(tmp_path / "out", make(files))
    batch = batches_of(data)[0]
    model = Model("whole", whole_module(code, weights), {n: x[:1] for n, x in batch.items()})
    names = tuple(layer.name for layer in profile(model).layers if layer.name.startswith("layers."))
    whole = apply(model, Plan("whole", (Decision(technique, names, Stage.QUANTIZE, form),)))
    torch.testing.assert_close(streamed(**batch), whole.outputs(batch)[0])


def test_what_is_outside_of_the_blocks_is_stored_as_it_came(files: tuple[Path, Path, Path], result: Path):
    before, after = open_tensors(files[1]), open_tensors(result)
    for name in ("words.weight", "head.weight", "places", "layers.1.norm1.weight"):
        assert after.tensors[name].dtype == "BF16"
        assert torch.equal(after.read(name), before.read(name))


def test_codes_take_their_width_in_the_files(result: Path):
    files = open_tensors(result)
    rows, columns = 48, 16
    assert files.tensors["layers.0.mix.weight.codes"].shape == (rows * columns * 3 // 8,)
    assert "layers.0.mix.weight" not in files.tensors


def test_the_manifest_says_how_it_was_made(result: Path):
    raw = json.loads((result / "manifest.json").read_text())
    assert (raw["format_version"], raw["kind"], raw["technique"]) == (1, "streamed", "gptq")
    assert raw["settings"] | FORM == raw["settings"]
    assert raw["blocks"] == [f"layers.{i}" for i in range(BLOCKS)]
    assert set(raw["files"]) | {"manifest.json"} == {f.name for f in result.iterdir()}


def test_a_damaged_shard_is_named_when_it_is_read(
    files: tuple[Path, Path, Path], result: Path, tmp_path: Path
):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in result.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = bytearray((copy / SHARDS[1]).read_bytes())
    data[-1] ^= 1
    (copy / SHARDS[1]).write_bytes(data)
    streamed = load_streamed(copy, make(files))
    streamed.block(0)
    with pytest.raises(ArtifactError, match=r"block-00001.safetensors is damaged"):
        streamed.block(1)
    (copy / SHARDS[2]).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"block-00002.safetensors is missing or cut short"):
        load_streamed(copy, make(files))


def test_gptq_says_that_it_needs_data(files: tuple[Path, Path, Path], tmp_path: Path):
    with pytest.raises(InputError, match="gptq needs calibration data"):
        stream(asked(files, tmp_path / "out", data=None))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"technique": "no_such"}, "no technique is called 'no_such'"),
        ({"technique": "equalization"}, "equalization belongs to stage transform"),
        ({"technique_settings": {"bits": 77}}, "gptq: bits must be"),
        ({"technique_settings": {"witdh": 7}}, "gptq: gptq has no setting 'witdh'"),
        ({"stack": "head"}, "'head' is no list of blocks"),
        ({"cache_dir": Path("no/such/place")}, "activations cannot be kept in no/such/place"),
        ({"model_arguments": {"width": 8}}, "weights does not fit the model: .* of another shape"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_made(
    files: tuple[Path, Path, Path], tmp_path: Path, others: dict[str, Any], message: str
):
    with pytest.raises(FlyweightError, match=message):
        stream(asked(files, tmp_path / "out", **others))
    assert not list(tmp_path.iterdir())


def test_settings_out_of_range_are_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        StreamSettings(model="m", weights=tmp_path, out=tmp_path, batch_size=0)
