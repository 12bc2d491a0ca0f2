from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flyweight.errors import InputError, UnsupportedError
from flyweight.load.streamed import Streamed, streamed, without_weights
from flyweight.load.tensor_files import open_tensors


class Net(nn.Module):
    """A buffer that no file holds, a parameter of its own, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0]), persistent=False)

    def forward(self, x):
        return self.second(self.first(x)) * self.scale * self.mask


def opened(module: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> Streamed:
    save_file(weights, folder / "w.safetensors")
    return streamed(module, open_tensors(folder), "w.safetensors")


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: value.to(dtype).clone() for name, value in Net().state_dict().items()}


def test_parameters_are_made_without_data_and_buffers_with_it():
    module = without_weights(Net)
    assert all(p.is_meta for p in module.parameters())
    assert module.mask.tolist() == [1, 0, 1]
    assert not module.training


def test_modules_made_afterwards_have_data():
    without_weights(Net)
    assert not nn.Linear(2, 2).weight.is_meta


def test_parameters_that_are_shared_stay_shared():
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        return net

    module = without_weights(make)
    assert module[0].weight is module[1].weight


def test_a_part_is_given_its_weights_in_a_copy(tmp_path: Path):
    source = opened(without_weights(Net), weights(torch.bfloat16), tmp_path)
    part = source.materialised("second")
    assert torch.equal(part.weight, weights(torch.bfloat16)["second.weight"].float())
    assert source.module.second.weight.is_meta


def test_weights_come_and_go_while_the_module_runs(tmp_path: Path):
    source = opened(without_weights(Net), weights(), tmp_path)
    whole = Net()
    whole.load_state_dict(weights())
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    with source.resident(["", "first", "second"]):
        assert source.module.first.weight.is_meta
        assert torch.equal(source.module(x), whole(x))
        assert source.module.first.weight.is_meta
    assert all(p.is_meta for p in source.module.parameters())


def test_weights_of_a_shared_parameter_are_found_by_its_other_name(tmp_path: Path):
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        return net

    source = opened(without_weights(make), {"0.weight": torch.eye(3)}, tmp_path)
    assert torch.equal(source.materialised("1").weight, torch.eye(3))


def test_missing_unexpected_and_mis_shaped_weights_are_named_in_one_sentence(tmp_path: Path):
    given = weights()
    del given["first.bias"]
    given |= {"second.weight": torch.zeros(3, 5), "third": torch.zeros(1)}
    with pytest.raises(InputError) as raised:
        opened(without_weights(Net), given, tmp_path)
    assert str(raised.value) == (
        "w.safetensors does not fit the model: 1 missing: first.bias; 1 unexpected: third; "
        "1 of another shape: second.weight (3, 5) (the model has (3, 4))"
    )


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, what: str):
    given = weights()
    given["first.weight"][1, 1] = value
    source = opened(without_weights(Net), given, tmp_path)
    with pytest.raises(InputError, match=f"weight 'first.weight' holds {what}"):
        source.materialised("first")


def test_a_buffer_that_nobody_fills_is_refused(tmp_path: Path):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.empty(3), persistent=False)
            self.layer = nn.Linear(2, 2)

    given = dict(nn.Linear(2, 2).state_dict(prefix="layer."))
    with pytest.raises(UnsupportedError, match=r"buffer 'table' is made by torch\.empty"):
        opened(without_weights(Odd), given, tmp_path)


def test_a_module_that_brings_its_own_weights_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="in a way that takes memory for all weights"):
        opened(Net(), weights(), tmp_path)
