"""Which channels may be scaled together: whatever is found free, scaling it changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flyweight.channels.classes import ANY, FIXED, Classes
from flyweight.channels.scales import multiply
from flyweight.channels.trace import trace
from flyweight.measure.agreement import relative_error
from flyweight.measure.error import folded
from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.testing.strategies import batches_for, residual_network, signal_network, tied_network
from small_transformers import bert, gpt, llama

ROUNDING = 1e-5


class Net(nn.Module):
    """Some layers, and a function of them that a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.narrow = nn.Conv2d(8, 6, 1)
        self.mixed = nn.Linear(8, 8)
        self.flat = nn.Linear(8 * 16, 4)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.norm = nn.GroupNorm(2, 8)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def net(forward):
    torch.manual_seed(0)
    return Model("net", Net(forward), {"x": torch.randn(1, 3, 8, 8)})


def layers_of(module):
    return [n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]


def found(model, **settings):
    graph = capture(model)
    return trace(graph, model, layers_of(graph), **settings)


def free(model, **settings):
    """(name, kind) of what has a free channel, and is not alone in a group."""
    groups = found(model, **settings).groups()
    return [sorted((s.name, s.kind) for s in group) for group in groups if len(group) > 1]


def scaled_error(model, seed=0, **settings):
    """Relative change of outputs on other inputs when each free class gets a factor of its own."""
    channels = found(model, **settings)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.rand(channels.count(), generator=generator) * 4 + 0.2
    factors[FIXED] = 1
    (batch,) = batches_for(model, count=1, size=3)
    copy = model.clone()
    multiply(copy.module, channels.sides, factors)
    return relative_error(model.outputs(batch), copy.outputs(batch))


PAIR = [("a", "rows"), ("b", "columns")]

# what lies between a and b, and whether channels may be scaled through it
BETWEEN = {
    "nothing": (lambda s, x: x, True),
    "relu": (lambda s, x: x.relu(), True),
    "leaky relu": (lambda s, x: F.leaky_relu(x, 0.1), True),
    "relu in place and dropout": (lambda s, x: F.dropout(x.relu_(), 0.5, s.training), True),
    "max pool": (lambda s, x: F.max_pool2d(x.relu(), 2), True),
    "average pool": (lambda s, x: F.avg_pool2d(x, 3, padding=1), True),
    "upsampling": (lambda s, x: F.interpolate(x, scale_factor=2.0, mode="nearest"), True),
    "a multiple": (lambda s, x: -2.5 * x / 3.0, True),
    "border of zeros": (lambda s, x: F.pad(x, (1, 1, 1, 1)), True),
    "masked with zeros": (lambda s, x: x.masked_fill(torch.ones(8, 8, dtype=torch.bool).tril(), 0.0), True),
    "split and joined": (lambda s, x: torch.cat(x.chunk(2, 1)[::-1], 1), True),
    "shuffled": (lambda s, x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8), True),
    "scaled by a parameter": (lambda s, x: x * s.scale, True),
    "added to a parameter": (lambda s, x: (x + s.scale).relu(), True),
    "border of ones": (lambda s, x: F.pad(x, (1, 1, 1, 1), value=1.0), False),
    "gelu": (lambda s, x: F.gelu(x), False),
    "sigmoid": (lambda s, x: x.sigmoid(), False),
    "silu by hand": (lambda s, x: x * x.sigmoid(), False),
    "a square": (lambda s, x: x * x, False),
    "a constant added": (lambda s, x: x + 1.0, False),
    "a maximum of constants": (lambda s, x: x.clamp(min=0.5), False),
    "clamped": (lambda s, x: F.relu6(x), False),
    "softmax": (lambda s, x: x.softmax(1), False),
    "a comparison": (lambda s, x: x * (x > 0.5), False),
    "a norm": (lambda s, x: F.group_norm(x, 2), False),
}


@pytest.mark.parametrize(("between", "through"), BETWEEN.values(), ids=BETWEEN.keys())
def test_channels_are_scaled_through_what_is_homogeneous_and_nothing_else(between, through):
    model = net(lambda self, x: self.b(between(self, self.a(x))))
    groups = free(model)
    assert any(set(PAIR) <= set(group) for group in groups) == through
    assert scaled_error(model) <= ROUNDING


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [bert, gpt, llama, tied_network, signal_network])
def test_any_factors_on_what_is_free_leave_the_outputs(make, seed):
    assert scaled_error(make(seed), seed) <= ROUNDING


@pytest.mark.parametrize("sums", [False, True])
def test_any_factors_leave_the_outputs_of_a_residual_network(sums):
    assert scaled_error(folded(residual_network()), sums=sums) <= ROUNDING


def test_layers_that_are_added_are_one_group_where_sums_are_followed():
    model = net(lambda self, x: self.narrow((y := self.a(x).relu()) + self.b(y)))
    together = [("a", "rows"), ("b", "columns"), ("b", "rows"), ("narrow", "columns")]
    assert free(model) == [together]
    assert free(model, sums=False) == []
    assert scaled_error(model) <= ROUNDING


def test_channels_added_to_padding_of_channels_are_scaled_with_the_shortcut():
    def forward(self, x):
        y = self.narrow(self.a(x))
        return self.mixed((self.a(x) + F.pad(y, (0, 0, 0, 0, 1, 1))).relu().mean((2, 3)))

    model = net(forward)
    assert [("a", "rows"), ("mixed", "columns"), ("narrow", "columns"), ("narrow", "rows")] in free(model)
    assert scaled_error(model) <= ROUNDING


def test_grouped_and_depthwise_convolutions_read_their_own_channels():
    model = net(lambda self, x: self.grouped(self.deep(self.a(x).relu()).relu()))
    assert free(model) == [
        [("a", "rows"), ("deep", "columns")],
        [("deep", "rows"), ("grouped", "columns")],
    ]
    assert scaled_error(model) <= ROUNDING


def test_a_flattened_channel_is_many_columns():
    model = net(lambda self, x: self.flat(F.max_pool2d(self.a(x), 2).flatten(1)))
    (group,) = [g for g in found(model).groups() if len(g) > 1]
    columns = next(side for side in group if side.kind == "columns")
    assert torch.equal(columns.classes, columns.classes[::16].repeat_interleave(16))
    assert len(columns.classes.unique()) == 8
    assert scaled_error(model) <= ROUNDING


def test_a_layer_called_twice_is_scaled_once():
    model = net(lambda self, x: self.narrow(self.b(self.b(self.a(x)).relu())))
    assert scaled_error(model) <= ROUNDING
    assert free(model) == [[("a", "rows"), ("b", "columns"), ("b", "rows"), ("narrow", "columns")]]


def test_layers_that_are_not_named_stay():
    model = net(lambda self, x: self.b(self.a(x)))
    assert trace(capture(model), model, ["b"]).groups() == []


def test_a_weight_of_two_layers_stays():
    names = {side.name for side in found(tied_network()).sides}
    assert names == {"wide", "narrow"}


def test_an_output_stays():
    assert free(net(lambda self, x: (self.b(y := self.a(x)), y))) == []


def test_values_and_hidden_channels_of_a_llama_are_free_and_so_are_its_norms():
    groups = free(llama())
    block = "blocks.0"
    values = [(f"{block}.attention.out", "columns"), (f"{block}.attention.value", "rows")]
    hidden = [(f"{block}.down", "columns"), (f"{block}.up", "rows")]
    norm = [(f"{block}.gate", "columns"), (f"{block}.norm2.weight", "parameter"), (f"{block}.up", "columns")]
    assert all(group in groups for group in (values, hidden, norm))
    assert ("blocks.0.attention.query", "rows") not in {side for group in groups for side in group}


def test_weight_and_bias_of_a_layer_norm_are_scaled_together():
    block = "blocks.1"
    assert [(f"{block}.norm2.bias", "parameter"), (f"{block}.norm2.weight", "parameter"),
            (f"{block}.wide", "columns")] in free(gpt())  # fmt: skip


def test_a_norm_whose_sum_is_read_elsewhere_stays():
    names = {name for group in free(bert()) for name, _ in group}
    assert not any(name.startswith("blocks.0.norm") for name in names)
    assert {"blocks.1.norm2.weight", "blocks.1.norm2.bias", "head"} <= names


def test_joined_numbers_are_one_class():
    classes = Classes()
    numbers = classes.fresh(4)
    classes.join(numbers[:2], numbers[2:])
    assert classes.of(numbers).tolist() == [1, 2, 1, 2]
    classes.fix(numbers[3])
    assert classes.of(numbers).tolist() == [1, FIXED, 1, FIXED]
    assert not classes.free(numbers[1:2])


def test_a_number_joined_with_any_stays_its_own():
    classes = Classes()
    numbers = classes.fresh(2)
    joined = classes.join(numbers, torch.tensor([ANY, ANY]))
    assert classes.of(joined).tolist() == [1, 2]
    assert classes.of(torch.tensor([ANY])).tolist() == [FIXED]
