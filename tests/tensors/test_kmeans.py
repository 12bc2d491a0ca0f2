"""k-means of numbers, against the best clustering there is and against the textbook's rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyweight.tensors.kmeans import STARTS, centroids, nearest

seeds = st.integers(0, 2**31)
starts = st.sampled_from(STARTS)


def drawn(seed: int, sets: int, count: int, magnitude: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(sets, count, generator=generator).log().neg()  # long tails
    return torch.randn(sets, count, generator=generator) * spread * magnitude


def error(values: torch.Tensor, table: torch.Tensor, shares: torch.Tensor | None = None) -> float:
    squares = (values - table.gather(1, nearest(values, table))).double().square()
    return float((squares if shares is None else squares * shares).sum())


def least_error(values: list[float], entries: int) -> float:
    """Of all ways to cut sorted values into intervals, by trying each last interval."""
    x = sorted(values)

    def of(part: list[float]) -> float:
        mean = sum(part) / len(part)
        return sum((v - mean) ** 2 for v in part)

    best = [0.0] + [of(x[:end]) for end in range(1, len(x) + 1)]
    for _ in range(entries - 1):
        best = [0.0] + [
            min(best[first] + of(x[first:end]) for first in range(end)) for end in range(1, len(x) + 1)
        ]
    return best[-1]


@given(seeds, st.integers(2, 5))
def test_few_values_are_clustered_as_well_as_can_be(seed, entries):
    values = drawn(seed, 1, 20).double().float()
    best = least_error(values[0].tolist(), entries)
    assert error(values, centroids(values, torch.ones_like(values), entries)) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("entries", [4, 8, 16])
def test_many_values_are_clustered_nearly_as_well_as_can_be(entries):
    values = drawn(0, 1, 100)
    best = least_error(values[0].tolist(), entries)
    assert error(values, centroids(values, torch.ones_like(values), entries)) < 1.05 * best


@given(starts, seeds, st.integers(1, 3), st.integers(1, 200), st.integers(1, 70), st.floats(1e-30, 1e30))
def test_no_centroid_can_be_moved_for_the_better(start, seed, sets, count, entries, magnitude):
    values = drawn(seed, sets, count, magnitude)
    table = centroids(values, torch.ones_like(values), entries, start)
    assert table.shape == (sets, entries)
    assert (table.diff(dim=1) >= 0).all()
    codes = nearest(values, table)
    for row, codes_of_row, entries_of_row in zip(values, codes, table, strict=True):
        for code in codes_of_row.unique():
            mean = row[codes_of_row == code].double().mean()
            assert float(entries_of_row[code]) == pytest.approx(float(mean), rel=1e-5, abs=1e-6 * magnitude)


@given(starts, seeds, st.integers(1, 100), st.integers(1, 40))
def test_clustering_what_was_clustered_changes_nothing(start, seed, count, entries):
    values = drawn(seed, 3, count)
    table = centroids(values, torch.ones_like(values), entries, start)
    once = table.gather(1, nearest(values, table))
    again = centroids(once, torch.ones_like(once), entries, start)
    assert torch.equal(again.gather(1, nearest(once, again)), once)


@given(starts, seeds)
def test_values_of_no_share_have_no_influence(start, seed):
    values = drawn(seed, 2, 60)
    shares = (torch.arange(60) % 3 > 0).float().expand(2, -1)
    others = torch.where(shares > 0, values, 1000.0)
    assert torch.equal(centroids(values, shares, 5, start), centroids(others, shares, 5, start))
    kept = values[:, shares[0] > 0]
    assert torch.equal(centroids(values, shares, 5, start), centroids(kept, torch.ones_like(kept), 5, start))


@given(seeds)
def test_a_share_of_three_counts_as_the_value_three_times(seed):
    values = drawn(seed, 1, 30)
    shares = torch.ones_like(values)
    shares[:, :10] = 3.0
    repeated = torch.cat([values, values[:, :10], values[:, :10]], 1)
    one = centroids(values, shares, 4)
    other = centroids(repeated, torch.ones_like(repeated), 4)
    assert error(values, one, shares) == pytest.approx(error(repeated, other), rel=0.02)


@pytest.mark.parametrize("entries", [8, 16])
def test_a_few_outliers_do_not_cost_all_the_others(entries):
    values = torch.cat([drawn(1, 1, 380), torch.tensor([[30.0, -40.0]])], 1)
    by = {s: error(values, centroids(values, torch.ones_like(values), entries, s)) for s in STARTS}
    assert by["optimal"] < 0.5 * by["linear"]
    assert by["optimal"] <= 1.001 * by["density"]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(2, 9),
        torch.full((2, 9), 3e38),
        torch.tensor([[1e-38, 2e-38, 3e-38, 9e-38]]),
        torch.ones(1, 1),
    ],
    ids=["zero", "huge", "tiny", "one"],
)
def test_extreme_values_stay_finite(start, values):
    table = centroids(values, torch.ones_like(values), 2, start)
    assert torch.isfinite(table).all()
    assert error(values, table) <= 0.3 * float(values.double().square().sum())


def test_a_set_without_shares_has_a_table_of_zeros():
    assert torch.equal(centroids(torch.ones(1, 5), torch.zeros(1, 5), 3), torch.zeros(1, 3))


def test_a_set_is_clustered_alike_alone_and_among_others():
    values = drawn(2, 40, 300)
    whole = centroids(values, torch.ones_like(values), 16)
    alone = centroids(values[7:8], torch.ones(1, 300), 16)
    torch.testing.assert_close(whole[7:8], alone)
