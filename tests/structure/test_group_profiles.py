"""What is predicted of a pruned model is what its profile then tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flyweight.core.groups import without_parts
from flyweight.measure.graph import capture
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.structure.dependencies import dependencies, groups
from flyweight.structure.group_profiles import group_profiles, with_groups, written_groups
from flyweight.structure.surgery import remove
from flyweight.testing.strategies import (
    causal_network,
    residual_network,
    signal_network,
    text_network,
    tied_network,
)
from small_transformers import bert, gpt, llama


class Depthwise(nn.Module):
    """Depthwise with two outputs a channel, grouped, flattened."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8)
        self.grouped, self.norm = nn.Conv2d(16, 24, 1, groups=4), nn.BatchNorm2d(24)
        self.head = nn.Linear(24 * 4, 5)

    def forward(self, x):
        x = self.norm(self.grouped(self.deep(self.first(x)).relu())).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def depthwise():
    torch.manual_seed(0)
    return Model("depthwise", Depthwise(), {"x": torch.randn(1, 3, 12, 12)})


NETWORKS = {
    "residual": residual_network,
    "signal": signal_network,
    "text": text_network,
    "tied": tied_network,
    "causal": causal_network,
    "bert": bert,
    "gpt": gpt,
    "llama": llama,
    "depthwise": depthwise,
}
COUNTS = ("rows", "columns", "macs", "input_elements", "output_elements", "storage_bytes")


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_left_is_predicted(network):
    model = NETWORKS[network]()
    graph = capture(model)
    found = dependencies(graph, model)
    several = groups(found)
    before = profile(model)
    told = group_profiles(before, graph, several)
    by_parts = {group.name: group for group in told}
    removed, classes = {}, []
    for group in several:
        (name,) = (g.name for g in group_profiles(before, graph, [group]))
        if name in by_parts and name not in removed:
            removed[name] = max(1, len(group) // 3)
            classes += group.classes[: removed[name]]
    assert removed
    expected = without_parts(replace(before, groups=told), removed)
    remove(graph, found, classes)
    pruned = model.clone()
    pruned.module = graph
    got = profile(pruned)
    for name, want in expected.by_name.items():
        for count in COUNTS:
            assert getattr(got.by_name[name], count) == getattr(want, count), (name, count)
    assert got.macs == expected.macs
    if not before.float_modules:
        assert got.other_bytes == expected.other_bytes


def test_groups_are_named_by_their_first_writer():
    known = with_groups(profile(depthwise()), depthwise())
    assert {group.name: (group.parts, group.writers) for group in known.groups} == {
        "first": (2, ("first", "deep")),
        "grouped": (6, ("grouped",)),
    }


def test_a_layer_shrinks_with_those_that_add_to_it():
    model = residual_network()
    known = with_groups(profile(model), model)
    shared = next(group for group in known.groups if len(group.writers) > 1)
    assert [g.name for g in written_groups(known, shared.writers)].count(shared.name) == 1
    with pytest.raises(ValueError, match="shrinks together with"):
        list(written_groups(known, shared.writers[:1]))


def test_not_all_parts_of_a_group_can_be_removed():
    known = with_groups(profile(depthwise()), depthwise())
    with pytest.raises(ValueError, match="of the 2 parts of 'first', 2 cannot be removed"):
        without_parts(known, {"first": 2})
