"""Modules of the user's own code."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from flyweight.errors import InputError, UnsupportedError
from flyweight.load.pytorch import load_module, prepared
from flyweight.model import copied
from flyweight.tensors.encoded import has_own_code

CODE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn.utils import prune
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


def old_weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


BAKED = {
    "old weight norm": old_weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", 0.5), "bias", 0.5
    ),
}


@pytest.mark.parametrize("make", BAKED.values(), ids=BAKED.keys())
def test_reparametrised_weights_become_plain_ones_and_the_copied_module_keeps_its_own(make):
    torch.manual_seed(0)
    module = nn.Sequential(make(nn.Linear(6, 5)), nn.Tanh(), make(nn.Linear(5, 3))).eval()
    x = torch.randn(4, 6)
    wanted, before = module(x), {name: value.clone() for name, value in module.state_dict().items()}
    found = prepared(copied(module), "m")
    assert [type(layer) for layer in found] == [nn.Linear, nn.Tanh, nn.Linear]
    assert sorted(found.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert all(isinstance(p, nn.Parameter) for p in (found[0].weight, found[0].bias))
    assert not any(has_own_code(layer) for layer in (found[0], found[2]))
    torch.testing.assert_close(found(x), wanted)
    assert {name: value.tolist() for name, value in module.state_dict().items()} == {
        name: value.tolist() for name, value in before.items()
    }
    torch.testing.assert_close(module(x), wanted)


def test_single_reparametrised_layer_becomes_a_sequence_of_one():
    found = prepared(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "fc")
    assert [type(layer) for layer in found.children()] == [nn.Linear]


@pytest.mark.parametrize("make", [lambda m: m, lambda m: nn.Sequential(m, nn.Linear(2, 2))])
def test_torchscript_is_refused_in_one_sentence(make):
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        module = make(torch.jit.script(nn.Sequential(nn.Linear(3, 2))))
    with pytest.raises(UnsupportedError, match=r"'net' is TorchScript.*give the Python module") as raised:
        prepared(module, "net")
    assert "\n" not in str(raised.value)


def test_baked_mask_spares_the_layer_that_shares_the_weight():
    module = nn.Sequential(nn.Embedding(5, 5), nn.Linear(5, 5))
    module[1].weight = module[0].weight
    prune.l1_unstructured(module[1], "weight", 0.5)
    ids = torch.arange(5)
    wanted = module(ids)
    found = prepared(module, "m")
    torch.testing.assert_close(found(ids), wanted)
    assert (found[0].weight != 0).all()
    assert (found[1].weight == 0).any()
