"""Parts that are found can be removed in any choice, and what is left computes what it did without them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from flyweight.errors import UnsupportedError
from flyweight.measure.agreement import relative_error
from flyweight.measure.calibrate import in_graph_order
from flyweight.measure.graph import capture
from flyweight.model import Model, tensors_of
from flyweight.structure.dependencies import dependencies, groups
from flyweight.structure.masked import Masked
from flyweight.structure.surgery import remove
from flyweight.testing.strategies import causal_network, residual_network, signal_network, text_network
from small_transformers import bert, gpt, llama

ROUNDING = 1e-5


class Net(nn.Module):
    """Some layers, and a function of them that a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.after = nn.Conv2d(8, 6, 1)
        self.wide = nn.Conv2d(16, 6, 1)
        self.few = nn.Conv2d(4, 6, 1)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4)
        self.narrow = nn.Conv2d(12, 6, 1)
        self.flat = nn.Linear(8 * 16, 4)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.norm = nn.GroupNorm(2, 8)
        self.each = nn.InstanceNorm2d(8, affine=True)
        self.batch = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.lstm = nn.LSTM(64, 5, batch_first=True)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def net(forward):
    torch.manual_seed(0)
    model = Model("net", Net(forward), {"x": torch.randn(1, 3, 8, 8)})
    norm = model.module.batch
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return model


def shuffled(s, x):
    y = s.deep(s.a(x))
    n, c, h, w = y.shape
    return s.wide(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def squeezed(s, x):
    y = s.a(x)
    return s.after(y * s.b(F.adaptive_avg_pool2d(y, 1)).sigmoid())


# what is computed, and how many parts the groups have
CASES = {
    "one after the other": (lambda s, x: s.after(s.b(s.a(x)).relu()), [8, 8]),
    "residual": (lambda s, x: s.after((y := s.a(x)) + s.b(y)), [8]),
    "concatenation": (lambda s, x: s.wide(torch.cat([y := s.a(x), s.b(y)], 1)), [8, 8]),
    "split": (lambda s, x: s.few(torch.mul(*s.a(x).split(4, 1))), [4]),
    "parts of a split": (lambda s, x: s.few(s.a(x).split([4, 4], 1)[1]), [4, 4]),
    "slice": (lambda s, x: s.few(s.a(x)[:, 2:6]), [4, 4]),
    "glu": (lambda s, x: s.few(F.glu(s.a(x), 1)), [4]),
    "depthwise": (lambda s, x: s.wide(s.deep(s.a(x))), [8]),
    "grouped": (lambda s, x: s.narrow(s.grouped(s.a(x))), [2, 3]),
    "shuffle of channels": (shuffled, [4]),
    "flatten": (lambda s, x: s.flat(F.adaptive_avg_pool2d(s.a(x), 4).flatten(1)), [8]),
    "mean": (lambda s, x: s.flat(s.a(x).mean((2, 3)).repeat_interleave(16, 1)), [8]),
    "squeeze and excitation": (squeezed, [8]),
    "pad": (lambda s, x: s.wide(F.pad(s.a(x), (0, 0, 0, 0, 4, 4)) + s.deep(s.b(s.a(x)))), [4, 4]),
    "padded image": (lambda s, x: s.after(F.pad(s.a(x), (1, 1, 2, 2), mode="reflect")), [8]),
    "scale": (lambda s, x: s.after(s.a(x) * s.scale), [8]),
    "group norm": (lambda s, x: s.after(s.norm(s.a(x))), [4]),
    "instance norm": (lambda s, x: s.after(s.each(s.a(x))), [8]),
    "batch norm": (lambda s, x: s.after(s.batch(s.a(x)).relu()), [8]),
    "prelu": (lambda s, x: s.after(s.prelu(s.a(x))), [8]),
    "layer norm": (lambda s, x: s.after(F.layer_norm(s.a(x).transpose(1, 3), [8]).transpose(1, 3)), [8]),
    "transposed convolution": (lambda s, x: s.after(s.up(s.a(x))), [8, 8]),
    "pixel shuffle": (lambda s, x: F.pixel_shuffle(s.a(x), 2) @ x.new_ones(16, 3), []),
    "pooling": (lambda s, x: s.after(F.max_pool2d(F.interpolate(s.a(x), scale_factor=2.0), 2)), [8]),
    "roll": (lambda s, x: s.after(s.a(x).roll(1, 2)), [8]),
}  # fmt: skip


def parts(graph, model):
    found = dependencies(graph, model)
    return found, groups(found)


def removal_error(model, draw):
    """Relative difference from the masked original after ``draw(size)`` parts of each group were removed."""
    graph = capture(model)
    found, several = parts(graph, model)
    removed = [group.classes[i] for group in several for i in draw(len(group))]
    inputs = in_graph_order(graph, model.example_inputs)
    wanted = tensors_of(Masked(graph, found, removed).run(*inputs), "masked")
    remove(graph, found, removed)
    pruned = model.clone()
    pruned.module = graph
    got = pruned.outputs()
    two = {name: torch.cat([value, value]) for name, value in model.example_inputs.items()}
    assert relative_error([got[0]], [pruned.outputs(two)[0][1:]]) <= ROUNDING
    assert sum(p.numel() for p in graph.parameters()) < sum(p.numel() for p in model.module.parameters())
    return relative_error(wanted, got)


@pytest.mark.parametrize("case", CASES)
def test_groups_are_found(case):
    forward, sizes = CASES[case]
    model = net(forward)
    assert sorted(len(group) for group in parts(capture(model), model)[1]) == sorted(sizes)


@pytest.mark.parametrize("case", [case for case, (_, sizes) in CASES.items() if sizes])
@settings(max_examples=2, deadline=None, phases=(Phase.generate,))  # it traces: shrinking takes minutes
@given(data=st.data())
def test_what_is_left_computes_what_it_did(case, data):
    def draw(size):
        return data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size - 1))

    assert removal_error(net(CASES[case][0]), draw) <= ROUNDING


NETWORKS = {
    "residual": residual_network,
    "signal": signal_network,
    "text": text_network,
    "causal": causal_network,
    "bert": bert,
    "gpt": gpt,
    "llama": llama,
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_networks_compute_what_they_did(network, share):
    generator = torch.Generator().manual_seed(0)

    def draw(size):
        return torch.randperm(size, generator=generator)[: max(1, int(share * size))].tolist()

    assert removal_error(NETWORKS[network](), draw) <= ROUNDING


def test_heads_go_with_the_queries_that_read_them():
    model = llama()
    _, several = parts(capture(model), model)
    heads = [g for g in several if any("query" in m.tensor and m.role == "writes" for m in g.members)]
    assert len(heads) == 2  # one group a block
    for group in heads:
        places = {m.tensor.split(".")[-2]: tuple(m.index.shape) for m in group.members}
        assert places == {"query": (2, 16), "key": (2, 8), "value": (2, 8), "out": (2, 16)}


def test_an_unknown_operator_is_named_where_it_shields():
    model = net(lambda s, x: s.after(s.a(x).cumprod(1)))
    found, several = parts(capture(model), model)
    assert several == []
    assert found.reasons["a.weight", 0] == ["operator cumprod is not understood"]


def test_a_recurrent_layer_shields_what_it_reads():
    model = net(lambda s, x: s.lstm(s.a(x).flatten(2))[0])
    found, several = parts(capture(model), model)
    assert several == []
    assert "lstm" in found.reasons["a.weight", 0][0]


def test_outputs_stay():
    model = net(lambda s, x: s.a(x))
    found, several = parts(capture(model), model)
    assert several == []
    assert found.reasons["a.weight", 0] == ["the model puts it out"]


def test_all_of_a_group_cannot_go():
    model = net(CASES["residual"][0])
    graph = capture(model)
    found, (group,) = parts(graph, model)
    with pytest.raises(UnsupportedError, match=r"nothing would be left of axis 0 of 'a\.weight'"):
        remove(graph, found, group.classes)


def test_layers_say_their_new_sizes():
    model = net(CASES["depthwise"][0])
    graph = capture(model)
    found, (group,) = parts(graph, model)
    remove(graph, found, group.classes[:3])
    a, deep, wide = (graph.get_submodule(name) for name in ("a", "deep", "wide"))
    assert (a.out_channels, deep.in_channels, deep.groups, deep.out_channels) == (5, 5, 5, 10)
    assert (wide.in_channels, wide.out_channels) == (10, 6)
