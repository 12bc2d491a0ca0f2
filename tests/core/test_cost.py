import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.core.cost import Budget, Cost

BOUNDS = ("storage_bytes", "ram_bytes", "latency_s", "energy_j")


def test_a_cost_within_every_bound_has_no_excess() -> None:
    budget = Budget(storage_bytes=100.0, latency_s=0.01)
    assert budget.excess(Cost(storage_bytes=100.0, ram_bytes=1e12, latency_s=0.005)) == {}


def test_an_unbounded_budget_fits_everything() -> None:
    assert Budget().excess(Cost(storage_bytes=1e15, ram_bytes=1e15, latency_s=1e9, energy_j=1e9)) == {}


def test_excess_is_relative_to_the_bound() -> None:
    assert Budget(storage_bytes=100.0).excess(Cost(storage_bytes=150.0)) == {
        "storage_bytes": pytest.approx(0.5)
    }


def test_excess_names_every_violated_bound_and_no_other() -> None:
    budget = Budget(storage_bytes=100.0, ram_bytes=100.0, latency_s=1.0)
    assert set(budget.excess(Cost(storage_bytes=101.0, ram_bytes=99.0, latency_s=2.0))) == {
        "storage_bytes",
        "latency_s",
    }


@pytest.mark.parametrize("bound", [*BOUNDS, "quality_drop"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_bound_that_nothing_or_everything_fits_is_refused(bound: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"budget {bound} must be finite"):
        Budget(**{bound: value})


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_bound_of_zero_is_refused(bound: str) -> None:
    with pytest.raises(ValueError, match="above 0, got 0"):
        Budget(**{bound: 0.0})


def test_a_quality_drop_of_zero_is_allowed() -> None:
    assert Budget(quality_drop=0.0).quality_drop == 0.0


@given(st.floats(1e-6, 1e12), st.floats(1e-6, 1e12))
def test_excess_is_empty_exactly_when_the_cost_is_at_most_the_bound(bound: float, cost: float) -> None:
    over = Budget(storage_bytes=bound).excess(Cost(storage_bytes=cost))
    assert (over == {}) == (cost <= bound)
    assert all(excess >= 0 for excess in over.values())
