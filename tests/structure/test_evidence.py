"""Gradients of parts: against differences, and a part that changes nothing scores nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.structure.dependencies import dependencies, groups
from flyweight.structure.evidence import fisher_scores, part_gradients, taylor_scores


class Small(nn.Module):
    """One hidden layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())


def small():
    torch.manual_seed(0)
    model = Model("small", Small(), {"x": torch.randn(1, 5)})
    graph = capture(model)
    return model, graph, groups(dependencies(graph, model))


def batches(count, size):
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(size, 5, generator=generator)} for _ in range(count)]


def test_fisher_scores_are_the_curvature_of_the_divergence():
    model, graph, several = small()
    (group,) = several
    given = batches(1, 64)
    (gradients,) = part_gradients(graph, model, several, given, outputs="logits", draws=1500)
    scores = fisher_scores(gradients)
    wanted = graph(**given[0]).log_softmax(-1).detach()
    step = 0.05
    for part in range(len(group)):
        column = next(m for m in group.members if m.role == "reads").index[part]
        with torch.no_grad():
            kept = graph.last.weight[:, column].clone()
            graph.last.weight[:, column] *= 1 - step
            got = graph(**given[0]).log_softmax(-1)
            graph.last.weight[:, column] = kept
        divergence = float((wanted.exp() * (wanted - got)).sum())
        assert divergence / step**2 == pytest.approx(float(scores[part]), rel=0.2, abs=1e-3)


@pytest.mark.parametrize("outputs", ["logits", "values"])
def test_a_part_that_nothing_reads_scores_nothing(outputs):
    model, graph, several = small()
    (group,) = several
    column = next(m for m in group.members if m.role == "reads").index[2]
    with torch.no_grad():
        graph.last.weight[:, column] = 0
    (gradients,) = part_gradients(graph, model, several, batches(4, 16), outputs=outputs, draws=2)
    assert gradients.shape == (8, len(group))
    for scores in (taylor_scores(gradients), fisher_scores(gradients)):
        assert int(scores.argmin()) == 2
        assert float(scores[2]) == 0
        assert float(scores.sum()) > 0


def test_the_seed_decides():
    model, graph, several = small()
    first, again, other = (
        part_gradients(graph, model, several, batches(2, 8), outputs="logits", seed=seed)[0]
        for seed in (0, 0, 1)
    )
    assert first.equal(again)
    assert not first.equal(other)
