"""Scores by hand, and parts of which the least can go without changing what is computed."""

from __future__ import annotations

import pytest
import torch

from flyweight.measure.graph import capture
from flyweight.structure.dependencies import dependencies, groups
from flyweight.structure.importance import CRITERIA, Evidence, normalised, of_parts
from flyweight.testing.strategies import perceptron

KNOWN = Evidence(
    weight=torch.tensor([[1.0, -2.0], [0.5, 3.0]]),
    gradient=torch.tensor([[2.0, -1.0], [0.0, 1.0]]),
    squared_gradient=torch.tensor([[4.0, 1.0], [0.0, 2.0]]),
    input_energy=torch.tensor([4.0, 0.25]),
    inverse_curvature=torch.tensor([0.5, 2.0]),
)
BY_HAND = {
    "l1": [[1.0, 2.0], [0.5, 3.0]],
    "l2": [[1.0, 4.0], [0.25, 9.0]],
    "gradient": [[2.0, 1.0], [0.0, 1.0]],
    "taylor": [[2.0, 2.0], [0.0, 3.0]],
    "fisher": [[2.0, 2.0], [0.0, 9.0]],
    "wanda": [[2.0, 1.0], [1.0, 1.5]],
    "obs": [[2.0, 2.0], [0.5, 4.5]],
}


@pytest.mark.parametrize("criterion", BY_HAND)
def test_scores_by_hand(criterion):
    assert torch.allclose(CRITERIA[criterion](KNOWN), torch.tensor(BY_HAND[criterion]))


def test_random_scores_are_the_same_each_time():
    first, again = (CRITERIA["random"](KNOWN) for _ in range(2))
    assert first.equal(again)
    assert first.shape == KNOWN.weight.shape
    assert CRITERIA.keys() == {*BY_HAND, "random"}


@pytest.mark.parametrize(("criterion", "what"), [("taylor", "gradients"), ("wanda", "inputs")])
def test_what_is_missing_is_named(criterion, what):
    with pytest.raises(ValueError, match=f"needs {what} on calibration data"):
        CRITERIA[criterion](Evidence(weight=torch.ones(2, 2)))


def test_the_parts_nothing_depends_on_score_least():
    model = perceptron()
    graph = capture(model)
    (group, *_) = groups(dependencies(graph, model))
    weights = dict(graph.named_parameters())
    with torch.no_grad():
        for member in group.members:
            if member.role == "reads":
                weights[member.tensor].index_fill_(member.axis, member.index[3], 0.0)
            if member.role == "writes":
                weights[member.tensor].index_fill_(member.axis, member.index[3], 1e-3)
    scores = {
        name: CRITERIA["l1"](Evidence(weight.detach()))
        for name, weight in weights.items()
        if weight.dim() == 2
    }
    assert int(of_parts(group, scores).argmin()) == 3


def test_normalised_scores_have_mean_one():
    assert float(normalised(torch.tensor([1.0, 2.0, 6.0])).mean()) == pytest.approx(1)
    assert normalised(torch.zeros(3)).equal(torch.ones(3))
