"""What a layer has to add because the summand beside it is off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flyweight.measure.graph import capture
from flyweight.measure.sums import other_summand
from flyweight.measure.walk import Seen, walk
from flyweight.model import Model


class Residual(nn.Module):
    """A convolution and a batch norm beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 1)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.first(x)
        return self.last(stream + self.norm(self.second(stream.relu())))


def model() -> Model:
    torch.manual_seed(0)
    module = Residual().train()
    for _ in range(3):
        module(torch.randn(8, 2, 4, 4))
    with torch.no_grad():
        module.norm.weight.copy_(torch.tensor([0.5, -2.0, 0.0]))
    return Model("residual", module.eval(), {"x": torch.randn(2, 2, 4, 4)})


@torch.no_grad()
def test_what_is_lacking_is_the_error_of_the_other_summand():
    found = model()
    batch = torch.randn(4, 2, 4, 4)
    graph, seen = capture(found), {}

    def visit(name: str, now: Seen) -> None:
        seen[name] = now.outputs if now.outputs is None else now.outputs[0]
        graph.get_submodule(name).weight.data.mul_(1.1)

    walk(graph, [{"x": batch}], ["first", "second"], visit)
    first = found.module.first
    error = first(batch) - (first(batch) + 0.1 * nn.functional.conv2d(batch, first.weight))
    norm = found.module.norm
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:2, None, None]
    assert seen["first"] is None
    lacking = seen["second"] - found.module.second(first(batch).relu())
    torch.testing.assert_close(
        lacking[:, 2], torch.zeros(4, 4, 4), atol=1e-6, rtol=0
    )  # the norm takes it away
    torch.testing.assert_close(lacking[:, :2] * scale, error[:, :2], rtol=1e-4, atol=1e-5)


class Sums(nn.Module):
    """Outputs that go elsewhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        stream, out = self.a(x), self.b(x)
        return {
            "twice": lambda: out + stream * out,
            "alpha": lambda: torch.add(stream, out, alpha=2),
            "relu": lambda: stream + out.relu(),
            "norm": lambda: stream + self.norm(out),
            "itself": lambda: out + out,
            "number": lambda: out + 1.0,
            "output": lambda: out,
        }[self.how]()


@pytest.mark.parametrize("how", ["twice", "alpha", "relu", "norm", "itself", "number", "output"])
def test_an_output_that_is_no_plain_summand_has_no_other(how: str):
    graph = capture(Model("sums", Sums(how).eval(), {"x": torch.randn(2, 4)}))
    (node,) = (node for node in graph.graph.nodes if node.target == "b")
    assert other_summand(graph, node) is None
