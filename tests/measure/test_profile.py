"""Profiles against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.measure.profile import parameter_count, profile
from flyweight.model import Model
from flyweight.tensors.activation import DynamicQuantizer
from flyweight.tensors.affine import AffineForm
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import attach
from flyweight.testing.strategies import residual_network, text_network


def test_work_of_each_layer_is_what_counting_by_hand_gives():
    layers = profile(residual_network()).by_name
    assert {name: layer.macs for name, layer in layers.items()} == {
        "stem": 8 * 8 * 8 * 3 * 9,
        "body": 8 * 8 * 8 * 8 * 9,
        "depthwise": 8 * 8 * 8 * 9,
        "head": 8 * 4,
    }
    assert (layers["depthwise"].rows, layers["depthwise"].columns) == (8, 9)
    assert (layers["stem"].input_elements, layers["stem"].output_elements) == (3 * 64, 8 * 64)


def test_embedding_does_no_work():
    table = profile(text_network()).by_name["table"]
    assert (table.op, table.macs, table.rows, table.columns) == ("embedding", 0, 40, 16)


def test_other_bytes_are_biases_and_norms():
    assert profile(residual_network()).other_bytes == 4 * (8 + 16 + 16 + 8 + 4)


def test_layers_are_in_order_of_execution():
    assert [layer.name for layer in profile(residual_network()).layers] == [
        "stem",
        "body",
        "depthwise",
        "head",
    ]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.head(self.table(ids))[..., :4])


def test_tied_weight_is_stored_once_and_a_layer_called_twice_works_twice():
    model = Model("tied", Tied(), {"ids": torch.tensor([[1, 2, 3]])})
    known = profile(model)
    assert known.by_name["head"].tied_to == "table"
    assert known.storage_bytes == 40 * 4
    assert known.by_name["head"].macs == 2 * 3 * 40
    assert parameter_count(model) == 40


def test_tied_weight_in_two_forms_is_stored_twice():
    model = Model("tied", Tied(), {"ids": torch.tensor([[1, 2, 3]])})
    attach(model.module, "table", AffineEncoder(AffineForm(bits=4)), "test")
    attach(model.module, "head", AffineEncoder(AffineForm()), "test")
    known = profile(model)
    assert known.by_name["head"].tied_to is None
    assert known.other_bytes == 0
    bits = AffineForm(bits=4).stored_bits(10, 4) + AffineForm().stored_bits(10, 4)
    assert known.storage_bytes == bits / 8


class Special(nn.Linear):
    """A subclass, which may compute anything."""


def test_subclass_of_a_known_layer_counts_as_other_bytes():
    model = Model("m", nn.Sequential(Special(3, 2), nn.Linear(2, 2)), {"input": torch.zeros(1, 3)})
    known = profile(model)
    assert list(known.by_name) == ["1"]
    assert known.storage_bytes == 4 * parameter_count(model)


@pytest.mark.parametrize(
    ("form", "group"),
    [
        (AffineForm(granularity="tensor"), None),
        (AffineForm(), 12),
        (AffineForm(bits=4, granularity="group", group_size=5), 5),
        (AffineForm(bits=4, granularity="group", group_size=64), 12),
    ],
)
def test_encoded_layer_is_profiled_by_what_it_stores(form, group):
    model = Model("m", nn.Sequential(nn.Linear(12, 3)), {"input": torch.zeros(1, 12)})
    layer = attach(model.module, "0", AffineEncoder(form), "test")
    layer.input_quantizer = DynamicQuantizer("tensor")
    known = profile(model).by_name["0"]
    assert (known.code_bits, known.group_size, known.activation_mode) == (form.bits, group, "dynamic")
    assert known.storage_bytes == form.stored_bits(3, 12) / 8


def test_embedding_that_changes_its_weight_counts_as_other_bytes():
    model = Model("m", nn.Sequential(nn.Embedding(5, 3, max_norm=1.0)), {"input": torch.tensor([[1]])})
    assert profile(model).layers == ()
    assert profile(model).other_bytes == 4 * 15
