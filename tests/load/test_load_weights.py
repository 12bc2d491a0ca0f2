"""Weight files: what is read, what fits, what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flyweight.errors import InputError
from flyweight.load.weights import check_finite, load_weights, read_weights


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_safetensors_are_read_as_they_were_written(tmp_path):
    save_file(net().state_dict(), tmp_path / "net.safetensors")
    read = read_weights(tmp_path / "net.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in net().state_dict().items())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
def test_state_dicts_of_pytorch_are_read(tmp_path, wrap):
    torch.save(wrap(net().state_dict()), tmp_path / "net.pth")
    assert set(read_weights(tmp_path / "net.pth")) == set(net().state_dict())


def test_loading_replaces_every_weight():
    source, target = net(), net()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    load_weights(target, source.state_dict(), "file")
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), source.parameters(), strict=True))


def test_the_prefix_of_data_parallel_is_taken_off():
    target = net()
    load_weights(target, {f"module.{n}": t + 1 for n, t in net().state_dict().items()}, "file")
    assert torch.equal(target[0].weight, net()[0].weight + 1)


def test_batch_counters_may_be_missing():
    weights = {n: t for n, t in net().state_dict().items() if "num_batches" not in n}
    load_weights(net(), weights, "file")


def test_a_tied_weight_may_be_missing_once():
    load_weights(Tied(), {"embedding.weight": torch.zeros(5, 3)}, "file")


def test_what_does_not_fit_is_told_with_at_most_three_names():
    weights = {f"extra{i}": torch.zeros(1) for i in range(5)} | {"0.weight": torch.zeros(9, 9)}
    with pytest.raises(InputError) as raised:
        load_weights(net(), weights, "net.safetensors")
    text = str(raised.value)
    assert "net.safetensors does not fit the model" in text
    assert "missing: 0.bias, 1.weight, 1.bias, ..." in text
    assert "5 unexpected: extra0, extra1, extra2, ..." in text
    assert "0.weight (9, 9) (the model has (4, 3))" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    module = net()
    with torch.no_grad():
        module[2].weight[0, 1] = value
    with pytest.raises(InputError, match=r"weight '2\.weight' of 'net' holds"):
        check_finite(module, "net")


def test_masks_may_hold_infinities():
    module = net()
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    check_finite(module, "net")


def test_a_truncated_file_is_refused(tmp_path):
    save_file(net().state_dict(), tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "net.safetensors").write_bytes(data[:-8])
    with pytest.raises(InputError, match="damaged, cut short or no safetensors"):
        read_weights(tmp_path / "net.safetensors")


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "net.bin"])
def test_a_pickle_with_code_is_not_run(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    with pytest.raises(InputError, match="pickle"):
        read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("net.npz", b"x", "of no known kind"),
        ("net.pt", b"", "damaged or no PyTorch file"),
        ("net.pt", b"PK\x03\x04 cut", "damaged or no PyTorch file"),
        ("net.safetensors", b"", "damaged, cut short"),
    ],
)
def test_other_files_are_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["net.pt", "net.bin"])
def test_safetensors_under_another_name_are_read(tmp_path, name):
    save_file(net().state_dict(), tmp_path / name)
    assert read_weights(tmp_path / name).keys() == net().state_dict().keys()


def test_a_file_that_is_no_pickle_is_not_called_one(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"weights of mine")
    with pytest.raises(InputError, match="damaged or no PyTorch file"):
        read_weights(tmp_path / "net.pt")


def test_a_folder_is_no_weights_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; name the file in it"):
        read_weights(tmp_path)


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "net.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        read_weights(tmp_path / "net.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no weights file .*absent\.pt"):
        read_weights(tmp_path / "absent.pt")
