"""What flows through a graph's places while it runs calibration data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.errors import UnsupportedError
from flyweight.measure.calibrate import observe
from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.testing.strategies import batches_for, perceptron


def test_observe_sees_every_batch():
    model = perceptron()
    graph = capture(model)
    (source,) = [node for node in graph.graph.nodes if node.op == "placeholder"]
    batches = batches_for(model, count=3)
    seen = observe(graph, batches, [source])[source]
    x = torch.cat([batch["input"] for batch in batches])
    assert (seen.low, seen.high) == (float(x.min()), float(x.max()))
    assert int(seen.counts.sum()) == x.numel()


def test_overflow_is_told_in_one_sentence_that_names_the_layer():
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(4, 4)

        def forward(self, input):
            return torch.exp(self.wide(input) + 1000).clamp(max=1)

    graph = capture(Model("m", Overflowing(), {"input": torch.randn(1, 4)}))
    (exponential,) = [n for n in graph.graph.nodes if n.name == "exp"]
    with pytest.raises(UnsupportedError, match="of 'exp' after 'wide' are NaN or infinite") as error:
        observe(graph, [{"input": torch.randn(2, 4)}], [exponential])
    assert "\n" not in str(error.value)


def test_observe_needs_a_batch():
    with pytest.raises(ValueError, match="at least one batch"):
        observe(capture(perceptron()), [], [])
