"""How many parts go: shares, multiples, and a budget of work against brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.core.groups import without_parts
from flyweight.core.layer import GroupMember, GroupProfile, LayerProfile, ModelProfile
from flyweight.structure.allocation import Widths, cheapest, same_share


def chain(*widths: int) -> ModelProfile:
    """Linear layers one after the other, from 8 inputs to 4 outputs; each width between is a group."""
    sizes = [8, *widths, 4]
    layers = [
        LayerProfile(
            name=f"fc{i}",
            op="linear",
            rows=out,
            columns=size,
            macs=size * out,
            input_elements=size,
            output_elements=out,
        )
        for i, (size, out) in enumerate(itertools.pairwise(sizes))
    ]
    groups = [
        GroupProfile(
            name=f"fc{i}",
            parts=width,
            writers=(f"fc{i}",),
            members=(
                GroupMember(layer=f"fc{i}", rows=1, output_elements=1),
                GroupMember(layer=f"fc{i + 1}", columns=1, input_elements=1),
            ),
            other_numbers=1,
        )
        for i, width in enumerate(widths)
    ]
    return ModelProfile(model="chain", layers=tuple(layers), other_bytes=1000.0, groups=tuple(groups))


@given(st.integers(1, 70), st.integers(1, 16), st.floats(0, 1), st.floats(0, 80))
def test_what_is_left_is_allowed(parts, multiple_of, least, wanted):
    widths = Widths(multiple_of=multiple_of, least=least)
    left = widths.nearest(parts, wanted)
    assert 1 <= left <= parts
    assert left == parts or left % min(multiple_of, parts) == 0
    assert left == parts or left >= least * parts
    lower = widths.below(parts, left)
    assert lower is None or lower < left


def test_a_share_of_each_group():
    known = chain(16, 10, 4)
    assert same_share(known.groups, 0.5, Widths()) == {"fc0": 8, "fc1": 5, "fc2": 2}
    assert same_share(known.groups, 0.5, Widths(multiple_of=8)) == {"fc0": 8, "fc1": 2, "fc2": 0}
    assert same_share(known.groups, 0.0, Widths()) == {"fc0": 0, "fc1": 0, "fc2": 0}


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=2, max_size=6), min_size=1, max_size=3), st.floats(0.3, 1.0)
)
def test_the_budget_of_work_is_kept(scores, share):
    known = chain(*map(len, scores))
    named = {f"fc{i}": own for i, own in enumerate(scores)}
    choices = [range(len(own)) for own in scores]
    reachable = [
        counts
        for counts in itertools.product(*choices)
        if without_parts(known, dict(zip(named, counts, strict=True))).macs <= share * known.macs
    ]
    if not reachable:
        with pytest.raises(ValueError, match="cannot be reached"):
            cheapest(known, named, share, Widths())
        return
    found = cheapest(known, named, share, Widths())
    after = without_parts(known, found)
    assert after.macs <= share * known.macs
    assert after.macs == sum(layer.rows * layer.columns for layer in after.layers)


def test_the_least_important_parts_go_first():
    known = chain(8, 8)
    scores = {"fc0": [5.0] * 8, "fc1": [0.1] * 4 + [9.0] * 4}
    assert cheapest(known, scores, 0.75, Widths()) == {"fc0": 0, "fc1": 4}


def test_work_is_left_in_multiples():
    known = chain(32, 32)
    scores = {name: [1.0] * 32 for name in ("fc0", "fc1")}
    found = cheapest(known, scores, 0.5, Widths(multiple_of=8))
    assert all((32 - count) % 8 == 0 for count in found.values())


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_of_work_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="macs must be above 0 and at most 1"):
        cheapest(chain(8), {"fc0": [1.0] * 8}, share, Widths())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="ratio must be at least 0 and below 1, got 1"):
        same_share((), 1.0, Widths())
    with pytest.raises(ValueError, match="multiple_of must be at least 1, got 0"):
        Widths(multiple_of=0)
    with pytest.raises(ValueError, match=r"least must be in 0\.\.1, got 2"):
        Widths(least=2.0)
