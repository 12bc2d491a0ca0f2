import pytest
import torch
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.measure.graph import capture
from flyweight.measure.walk import walk
from flyweight.model import Model, copied
from flyweight.testing.strategies import NETWORKS, batches_for


class Twice(nn.Module):
    """One layer called twice, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.relu(self.first(x)) + x
        return self.again(self.again(x)) + x


def seen_by_hooks(graph, batches, names):
    seen = {name: [] for name in names}
    handles = [
        graph.get_submodule(name).register_forward_pre_hook(
            lambda m, args, n=name: seen[n].append(args[0].clone())
        )
        for name in names
    ]
    for batch in batches:
        graph(**batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("network", ["residual", "perceptron", "signal"])
@torch.no_grad()
def test_layers_see_what_they_read_before_and_after_quantization(network: str):
    torch.manual_seed(0)
    model = NETWORKS[network]()
    batches = batches_for(model)
    graph = capture(model)
    names = [
        str(n.target)
        for n in graph.graph.nodes
        if n.op == "call_module" and hasattr(graph.get_submodule(n.target), "weight")
    ]
    names = [
        n
        for n in dict.fromkeys(names)
        if isinstance(graph.get_submodule(n), nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    before = seen_by_hooks(graph, batches, names)
    floats, quantized = {}, {}

    def visit(name, seen):
        floats[name] = [x.clone() for x in seen.float_inputs]
        quantized[name] = [x.clone() for x in seen.inputs]
        layer = graph.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight * 1.1)

    walk(graph, batches, names, visit)
    after = seen_by_hooks(graph, batches, names)
    assert list(floats) == names
    for name in names:
        for got, wanted in zip(floats[name], before[name], strict=True):
            torch.testing.assert_close(got, wanted)
        for got, wanted in zip(quantized[name], after[name], strict=True):
            torch.testing.assert_close(got, wanted)


def test_the_first_layer_reads_the_same_tensors_both_ways():
    torch.manual_seed(0)
    model = Model("twice", Twice(), {"x": torch.randn(1, 4)})
    same = {}

    def visit(name, seen):
        same[name] = all(x is y for x, y in zip(seen.inputs, seen.float_inputs, strict=True))
        graph.get_submodule(name).weight.data.mul_(2)

    graph = capture(model)
    walk(graph, [{"x": torch.randn(3, 4)}], ["first", "again"], visit)
    assert same == {"first": True, "again": False}


def test_a_layer_called_twice_is_visited_once():
    torch.manual_seed(0)
    model = Model("twice", Twice(), {"x": torch.randn(1, 4)})
    graph, visited = capture(model), []
    walk(graph, [{"x": torch.randn(3, 4)}], ["again"], lambda name, seen: visited.append(name))
    assert visited == ["again"]


def test_the_walk_leaves_unchosen_layers_alone():
    torch.manual_seed(0)
    model = Model("twice", Twice(), {"x": torch.randn(1, 4)})
    graph = capture(model)
    before = copied(graph).state_dict()
    walk(graph, [{"x": torch.randn(3, 4)}], ["first"], lambda name, seen: None)
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())


def test_a_layer_the_graph_does_not_call_is_named():
    torch.manual_seed(0)
    model = Model("twice", Twice(), {"x": torch.randn(1, 4)})
    with pytest.raises(UnsupportedError, match="layer 'nowhere' is not found in the traced model"):
        walk(capture(model), [{"x": torch.randn(3, 4)}], ["nowhere"], lambda name, seen: None)
