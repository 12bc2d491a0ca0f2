import pytest
import torch
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.measure.graph import capture
from flyweight.measure.sums import other_summand
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
        graph.get_submodule(name).register_forward_hook(
            lambda m, args, output, n=name: seen[n].append((args[0].clone(), output.clone()))
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
def test_layers_see_what_they_read_and_what_they_put_out_before_quantization(network: str):
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
    outputs, inputs = {}, {}

    def visit(name, seen):
        outputs[name] = seen.outputs if seen.outputs is None else [x.clone() for x in seen.outputs]
        inputs[name] = [x.clone() for x in seen.inputs]
        layer = graph.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight * 1.1)

    walk(graph, batches, names, visit)
    after = seen_by_hooks(graph, batches, names)
    assert list(inputs) == names
    assert outputs[names[0]] is None  # nothing before it is quantized
    for name in names:
        for got, (wanted, _) in zip(inputs[name], after[name], strict=True):
            torch.testing.assert_close(got, wanted)
        graph_node = next(n for n in graph.graph.nodes if n.target == name)
        if other_summand(graph, graph_node) is None and outputs[name] is not None:
            for got, (_, wanted) in zip(outputs[name], before[name], strict=True):
                torch.testing.assert_close(got, wanted)


@torch.no_grad()
def test_without_outputs_only_the_quantized_model_is_computed():
    torch.manual_seed(0)
    model = Model("twice", Twice(), {"x": torch.randn(1, 4)})
    batch, names = {"x": torch.randn(3, 4)}, ["first", "again"]
    seen, calls = {}, []

    def walked(outputs: bool):
        graph, found = capture(model), {}
        handle = graph.again.register_forward_hook(lambda *_: calls.append(outputs))

        def visit(name, now):
            found[name] = now
            graph.get_submodule(name).weight.data.mul_(1.1)

        walk(graph, [batch], names, visit, outputs=outputs)
        handle.remove()
        return found

    seen = {outputs: walked(outputs) for outputs in (True, False)}
    assert all(now.outputs is None for now in seen[False].values())
    assert seen[True]["again"].outputs is not None
    for name in names:
        torch.testing.assert_close(seen[True][name].inputs[0], seen[False][name].inputs[0])
    assert calls.count(False) < calls.count(True)


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
