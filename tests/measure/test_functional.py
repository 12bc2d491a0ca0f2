"""Graphs without changes in place compute what the model does, however often values are used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import UnsupportedError
from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.tensors.encoded import encoded_layers


class Residual(nn.Module):
    """Two sums, in place or not, the first of a value that no quantized layer made."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        for layer in (self.a, self.b):
            if self.in_place:
                h += layer(h)
                h.mul_(0.9)
            else:
                h = (h + layer(h)) * 0.9
        return self.c(torch.relu_(h) if self.in_place else torch.relu(h))


def model(*, in_place: bool) -> Model:
    torch.manual_seed(0)
    return Model("residual", Residual(in_place=in_place), {"x": torch.randn(1, 8)})


def test_no_operator_of_the_graph_writes_to_what_it_reads():
    graph = capture(model(in_place=True))
    assert not any(
        getattr(n.target, "_schema", None) and n.target._schema.is_mutable for n in graph.graph.nodes
    )


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("technique", ["gptq", "binary"])
def test_sums_in_place_are_quantized_as_other_sums_are(technique: str, batches: int):
    generator = torch.Generator().manual_seed(1)
    data = [{"x": torch.randn(40, 8, generator=generator)} for _ in range(batches)]
    before = [batch["x"].clone() for batch in data]
    plan = Plan("residual", (Decision(technique, ("a", "b", "c"), Stage.QUANTIZE),))
    found = [
        [layer.weight for _, layer in encoded_layers(apply(model(in_place=x), plan, data).module)]
        for x in (True, False)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert all(torch.equal(batch["x"], was) for batch, was in zip(data, before, strict=True))


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 1.0
        return self.layer(x)


def test_a_model_that_changes_its_input_is_captured_and_leaves_the_example():
    torch.manual_seed(0)
    changing = Model("changing", ChangesItsInput(), {"x": torch.randn(1, 8)})
    example = changing.example_inputs["x"].clone()
    graph = capture(changing)
    x = torch.randn(3, 8)
    torch.testing.assert_close(graph(x=x), changing.module.layer(x - 1.0))
    assert torch.equal(changing.example_inputs["x"], example)


class ChangesAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x[:, :4] += 1.0
        return self.layer(x)


def test_a_view_that_is_changed_is_computed_or_refused():
    torch.manual_seed(0)
    viewing = Model("viewing", ChangesAView(), {"x": torch.randn(1, 8)})
    x = torch.randn(3, 8)
    try:
        graph = capture(viewing)
    except UnsupportedError as error:
        assert "changes a part of a tensor in place" in str(error)  # noqa: PT017  # either is right
    else:
        torch.testing.assert_close(graph(x=x.clone()), viewing.module(x.clone()))
