import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flyweight.errors import InputError
from flyweight.load.tensor_files import index_text, open_tensors


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).reshape(2, 3).half()}, tmp_path / "one.safetensors")
    save_file({"b": torch.arange(4), "c": torch.ones(2).bfloat16()}, tmp_path / "two.safetensors")
    return tmp_path


def with_index(folder: Path, weights: dict[str, str]) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return path


def test_a_folder_of_files_gives_all_their_tensors(shards: Path):
    found = open_tensors(shards)
    assert {name: (s.shape, s.dtype) for name, s in found.tensors.items()} == {
        "a": ((2, 3), "F16"),
        "b": ((4,), "I64"),
        "c": ((2,), "BF16"),
    }
    assert torch.equal(found.read("a"), torch.arange(6.0).reshape(2, 3).half())


def test_floats_are_widened_and_whole_numbers_are_not(shards: Path):
    found = open_tensors(shards)
    assert found.floats("c").dtype == torch.float32
    assert found.floats("b").dtype == torch.int64


def test_an_index_says_which_tensors_there_are(shards: Path):
    found = open_tensors(with_index(shards, {"a": "one.safetensors", "b": "two.safetensors"}))
    assert set(found.tensors) == {"a", "b"}
    assert open_tensors(shards) == found


def test_the_index_that_is_written_is_read(shards: Path):
    files = sorted(shards.glob("*.safetensors"))
    (shards / "model.safetensors.index.json").write_text(index_text(files))
    assert set(open_tensors(shards).tensors) == {"a", "b", "c"}


def test_a_missing_shard_is_named(shards: Path):
    path = with_index(shards, {"a": "one.safetensors", "z": "three.safetensors"})
    with pytest.raises(InputError, match=r"1 of 2 shards of .* are missing: three.safetensors"):
        open_tensors(path)


def test_a_tensor_that_its_shard_lacks_is_named(shards: Path):
    with pytest.raises(InputError, match=r"tensor 'z' is not in .*one.safetensors"):
        open_tensors(with_index(shards, {"z": "one.safetensors"}))


def test_a_shard_outside_of_the_folder_is_refused(shards: Path):
    with pytest.raises(InputError, match="not in its folder"):
        open_tensors(with_index(shards, {"a": "../one.safetensors"}))


def test_a_file_cut_short_is_named(shards: Path):
    path = shards / "one.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"one.safetensors is damaged, cut short"):
        open_tensors(path)


def test_two_files_with_one_name_are_refused(shards: Path):
    save_file({"a": torch.zeros(1)}, shards / "zwei.safetensors")
    with pytest.raises(InputError, match=r"tensor 'a' is in .*one.safetensors and in .*zwei.safetensors"):
        open_tensors(shards)


@pytest.mark.parametrize(
    ("name", "message"), [("none", "there is no weights file"), ("", "no safetensors file")]
)
def test_a_place_without_weights_is_named(tmp_path: Path, name: str, message: str):
    with pytest.raises(InputError, match=message):
        open_tensors(tmp_path / name)


def test_a_pickle_is_not_mapped(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be mapped"):
        open_tensors(tmp_path / "w.bin")
