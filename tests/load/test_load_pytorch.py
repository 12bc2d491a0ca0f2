"""Modules of the user's own code."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flyweight.errors import InputError, UnsupportedError
from flyweight.load.pytorch import load_module, prepared

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from neighbour import WIDTH

@dataclass
class Shape:
    width: int = WIDTH

class Net(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)
    def forward(self, x):
        return self.fc(x)

def make(width: int = Shape().width, deep: bool = False) -> nn.Module:
    from neighbour import WIDTH
    return Net(width)

def needs(width):
    return Net(width)

def breaks():
    raise ValueError("no\\nluck")

def leaves():
    raise SystemExit(5)

def hollow():
    with torch.device("meta"):
        return Net()

def no_module():
    return 3

net = Net()
half = Net().half()
number = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "nets.py").write_text(CODE)
    return str(tmp_path / "nets.py")


@pytest.mark.parametrize("name", ["make", "Net", "net"])
def test_functions_classes_and_modules_are_taken(file, name):
    module = load_module(f"{file}:{name}", arguments={})
    assert module(torch.zeros(2, 3)).shape == (2, 2)
    assert not module.training


def test_arguments_reach_the_factory(file):
    assert load_module(f"{file}:make", arguments={"width": 5}).fc.in_features == 5


def test_modules_of_packages_are_taken():
    assert isinstance(load_module("torch.nn:Identity", arguments={}), nn.Identity)


def test_a_single_layer_becomes_a_sequence_of_one():
    layer = torch.nn.Linear(3, 2)
    found = prepared(layer, "fc")
    assert list(dict(found.named_children())) == ["0"]
    assert found[0] is layer


def test_half_precision_becomes_float32(file):
    assert load_module(f"{file}:half", arguments={}).fc.weight.dtype == torch.float32


def test_weights_are_loaded(file, tmp_path):
    weights = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
    save_file(weights, tmp_path / "net.safetensors")
    module = load_module(f"{file}:make", tmp_path / "net.safetensors", arguments={})
    assert torch.equal(module.fc.weight, weights["fc.weight"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("absent", {}, "has no 'absent'; it has Shape, Net, make"),
        ("needs", {}, "missing a required argument: 'width'.*--model-arg"),
        ("make", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("net", {"width": 3}, "is a module, not a function"),
        ("breaks", {}, r"raised ValueError: no luck \(nets\.py, line \d+: raise ValueError"),
        ("leaves", {}, "raised SystemExit: 5"),
        ("hollow", {}, "no data"),
        ("no_module", {}, "returned a int; it must return an nn.Module"),
        ("number", {}, "is a int; name a function"),
    ],
)
def test_what_goes_wrong_is_one_sentence(file, name, arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        load_module(f"{file}:{name}", arguments=arguments)
    assert "\n" not in str(raised.value)


def test_nan_weights_are_refused():
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, float("nan"))
    with pytest.raises(InputError, match="'weight' of 'net' holds NaN"):
        prepared(module, "net")


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embedding_with_max_norm_gets_the_rows_it_would_give(kind):
    ids = torch.tensor([[1, 0, 4]])
    wanted = nn.Sequential(kind(5, 3, max_norm=1.0))
    weights = {"0.weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 3}
    wanted.load_state_dict(weights)
    module = nn.Sequential(kind(5, 3, max_norm=1.0))
    module.load_state_dict(weights)
    prepared(module, "m")
    assert module[0].max_norm is None
    torch.testing.assert_close(module(ids), wanted(ids))


def test_shared_embedding_with_max_norm_is_refused():
    module = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Linear(3, 5))
    module[1].weight = module[0].weight
    with pytest.raises(UnsupportedError, match="embedding '0' has max_norm, and another layer reads"):
        prepared(module, "m")
