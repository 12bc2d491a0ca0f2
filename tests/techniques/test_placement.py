"""Where activations are rounded."""

from __future__ import annotations

import torch
from torch import nn

from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.techniques._placement import insert, place
from flyweight.tensors.activation import StaticQuantizer
from flyweight.testing.strategies import residual_network


class Net(nn.Module):
    """Two convolutions, and a function of them that a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def placed(forward, layers=("a", "b")):
    """(names of operators with a quantizer of their own, of those that share one)."""
    graph = capture(Model("m", Net(forward), {"x": torch.randn(1, 3, 8, 8)}))
    placement = place(graph, layers)
    short = lambda node: str(node.target).removeprefix("aten.").split(".")[0]  # noqa: E731
    return [short(n) for n in placement.own], [short(n) for n in placement.shared]


def test_relu_is_fused_into_the_convolution_before_it():
    own, shared = placed(lambda self, x: self.b(torch.relu(self.a(x))))
    assert (own, shared) == (["x", "relu", "b"], [])


def test_residual_addition_runs_on_codes():
    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.b(torch.relu(self.b(y) + y))

    own, _ = placed(forward)
    assert own == ["x", "relu", "b", "relu", "b"]


def test_addition_of_a_float_value_stays_float():
    def forward(self, x):
        y = self.a(x)
        return y + torch.sin(y)

    assert placed(forward)[0] == ["x", "a"]


def test_addition_of_a_constant_stays_float():
    assert placed(lambda self, x: self.a(x) + 1.0)[0] == ["x", "a"]


def test_scaled_addition_stays_float():
    own, _ = placed(lambda self, x: self.b(torch.add(self.a(x), self.a(x), alpha=2)))
    assert own == ["x", "a", "a", "add", "b"]  # rounded only because a convolution reads it


def test_max_pool_shares_the_grid_of_its_input():
    own, shared = placed(lambda self, x: self.b(nn.functional.max_pool2d(torch.relu(self.a(x)), 2)))
    assert (own, shared) == (["x", "relu", "b"], ["max_pool2d"])


def test_mean_pool_has_a_grid_of_its_own_and_flatten_shares_it():
    def forward(self, x):
        y = nn.functional.adaptive_avg_pool2d(torch.relu(self.a(x)), 1)
        return self.fc(torch.flatten(y, 1))

    own, shared = placed(forward, ("a", "fc"))
    assert (own, shared) == (["x", "relu", "adaptive_avg_pool2d"], ["flatten"])


def test_slices_share_and_concatenations_have_their_own():
    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.b(torch.cat([y[:, :2], y[:, 2:]], 1))

    own, shared = placed(forward)
    assert (own, set(shared)) == (["x", "relu", "cat", "b"], {"slice"})


def test_zero_padding_shares_and_other_padding_does_not():
    def padded(**settings):
        return lambda self, x: self.b(nn.functional.pad(torch.relu(self.a(x)), (1, 1, 1, 1), **settings))

    assert placed(padded()) == (["x", "relu", "b"], ["pad"])
    assert placed(padded(value=1.0)) == (["x", "relu", "pad", "b"], [])
    assert placed(padded(mode="reflect")) == (["x", "relu", "pad", "b"], [])


def test_output_of_a_linear_layer_stays_float():
    assert placed(lambda self, x: self.fc(self.a(x).mean((2, 3))), ("a", "fc"))[0] == ["x", "a", "mean"]


def test_value_that_only_moves_on_to_the_output_is_not_rounded_again():
    assert placed(lambda self, x: torch.flatten(self.a(x), 1)) == (["x", "a"], [])


def test_every_input_of_an_integer_layer_is_rounded():
    graph = capture(residual_network())
    layers = ["stem", "body", "depthwise", "head"]
    placement = place(graph, layers)
    for node in graph.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            assert placement.source_of(node.all_input_nodes[0]) is not None


def test_first_convolution_that_rounds_its_own_input_needs_no_quantizer():
    graph = capture(residual_network())
    (first,) = [node for node in graph.graph.nodes if node.target == "stem"]
    placement = place(graph, ["stem", "body"], reads_its_own=first)
    assert all(node.op != "placeholder" for node in placement.own)


def test_value_read_at_two_widths_has_two_grids():
    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.b(torch.relu(self.b(y) + y))

    graph = capture(Model("m", Net(forward), {"x": torch.randn(1, 3, 8, 8)}))
    placement = place(graph, ("a", "b"), bits={"a": 8, "b": 3})
    widths = [(str(node.target).split(".")[-2:][0], bits) for node, bits in placement.grids()]
    assert widths == [("x", 8), ("relu", 8), ("relu", 3), ("b", 8), ("relu", 3), ("b", 8)]


def test_pool_passes_on_the_width_of_what_reads_it():
    def forward(self, x):
        return self.b(nn.functional.max_pool2d(torch.relu(self.a(x)), 2))

    graph = capture(Model("m", Net(forward), {"x": torch.randn(1, 3, 8, 8)}))
    placement = place(graph, ("a", "b"), bits={"a": 8, "b": 3})
    (pool,) = placement.shared
    assert [bits for _, bits in placement.grids()] == [8, 3, 8]
    assert list(placement.readers(pool)) == [3]
    assert placement.bits_of(pool) == 3


def test_what_is_rounded_already_is_not_rounded_again():
    graph = capture(residual_network())
    layers = ["stem", "body", "depthwise", "head"]
    placement = place(graph, layers)
    insert(graph, placement, {grid: StaticQuantizer(0.1, 100) for grid in placement.grids()})
    assert place(graph, layers).own == ()
