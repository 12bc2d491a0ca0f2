import gc
from pathlib import Path

import pytest
import torch

from flyweight.errors import InputError
from flyweight.measure.cache import SMALLEST, disk_cache

LARGE = SMALLEST  # float32 numbers


def values(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(8, LARGE, generator=generator)
    yield whole
    yield whole.t()
    yield whole[:, ::2]
    yield whole[3:5, 7:]
    yield whole[:1].expand(4, -1)
    yield whole.long(), [whole > 0, None, 3]
    yield torch.zeros(0, 5)


def tensors_in(value):
    return [t for t in torch.utils._pytree.tree_flatten(value)[0] if isinstance(t, torch.Tensor)]


def test_values_come_back_bit_by_bit_with_their_layout(tmp_path: Path):
    with disk_cache(tmp_path) as cache:
        kept = cache.keep(values())
        assert len(kept) == len(list(values()))
        for got, wanted in zip(kept, values(), strict=True):
            for one, other in zip(tensors_in(got), tensors_in(wanted), strict=True):
                assert torch.equal(one, other)
                assert one.stride() == other.stride()
                assert one.dtype == other.dtype


def test_what_is_no_tensor_comes_back_too(tmp_path: Path):
    with disk_cache(tmp_path) as cache:
        assert cache.keep(values())[5][1][1:] == [None, 3]


def test_large_tensors_lie_in_the_file(tmp_path: Path):
    with disk_cache(tmp_path) as cache:
        kept = cache.keep([torch.zeros(100, LARGE)])
        (file,) = tmp_path.rglob("*.values")
        assert file.stat().st_size == 400 * LARGE
        del kept


def test_changing_a_value_does_not_change_the_file(tmp_path: Path):
    with disk_cache(tmp_path) as cache:
        kept = cache.keep([torch.zeros(LARGE), torch.ones(LARGE)])
        kept[0].add_(5)
        assert kept[1].sum() == LARGE  # the first is let go of
        assert kept[0].sum() == 0


def test_a_value_that_is_read_twice_in_turn_is_the_same_object(tmp_path: Path):
    with disk_cache(tmp_path) as cache:
        kept = cache.keep([torch.zeros(LARGE)])
        assert kept[0] is kept[0]


def test_a_file_goes_with_its_values(tmp_path: Path):
    with disk_cache(tmp_path) as cache:
        kept = cache.keep([torch.zeros(LARGE)])
        assert list(tmp_path.rglob("*.values"))
        del kept
        gc.collect()
        assert not list(tmp_path.rglob("*.values"))


def test_the_folder_goes_even_after_a_failure(tmp_path: Path):
    def failing():
        yield torch.zeros(LARGE)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"), disk_cache(tmp_path) as cache:
        cache.keep(failing())
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleared_by_the_next_and_that_of_a_running_one_is_not(tmp_path: Path):
    dead = tmp_path / ".flyweight-activations.0123abcd.partial"
    dead.mkdir()
    (dead / "0.values").write_bytes(b"half")
    with disk_cache(tmp_path):
        (running,) = tmp_path.iterdir()
        assert running != dead
        with disk_cache(tmp_path):
            assert running in tmp_path.iterdir()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with (
        pytest.raises(InputError, match=r"activations cannot be kept in .*missing"),
        disk_cache(tmp_path / "missing"),
    ):
        pass
