"""Vector quantization: closeness, size, projection, masks, importance, learned tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flyweight.tensors.codebook import CodebookForm, encode_codebook, fit_table
from flyweight.tensors.encoded import attach, freeze
from flyweight.tensors.vector import VectorEncoder, VectorForm, encode_vectors, fit_vectors

seeds = st.integers(0, 2**31)
forms = st.builds(
    lambda bits, dimension: VectorForm(bits=bits, dimension=dimension), st.integers(2, 5), st.integers(2, 5)
)


def weight(seed: int, rows: int = 8, columns: int = 33, magnitude: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude


def encoded(w, form, mask=None, importance=None):
    table = fit_vectors(w, form, mask, importance=importance)
    return encode_vectors(w, form, table, mask, importance=importance)


@given(forms, seeds, st.integers(1, 6), st.integers(1, 40), st.floats(1e-30, 1e30))
def test_every_vector_is_the_closest_entry(form, seed, rows, columns, magnitude):
    w = weight(seed, rows, columns, magnitude)
    stored = encoded(w, form)
    padded = torch.nn.functional.pad(w, (0, -columns % form.dimension))
    counts = torch.nn.functional.pad(torch.ones_like(w), (0, -columns % form.dimension))
    for line, count, codes in zip(padded, counts, stored.codes.long(), strict=True):
        parts = zip(line.split(form.dimension), count.split(form.dimension), codes, strict=True)
        for vector, counted, code in parts:
            distances = (((stored.table - vector) * counted).double() / magnitude).square().sum(1)
            assert float(distances[code]) <= float(distances.min()) + 1e-9


@given(forms, seeds, st.integers(1, 6), st.integers(1, 40), st.floats(1e-30, 1e30))
def test_encoding_twice_with_the_table_changes_nothing(form, seed, rows, columns, magnitude):
    w = weight(seed, rows, columns, magnitude)
    once = encoded(w, form)
    again = encode_vectors(once.decode(), form, once.table)
    assert torch.equal(again.decode(), once.decode())


@given(forms, seeds, st.integers(1, 6), st.integers(1, 10))
def test_a_new_table_for_few_distinct_vectors_is_these(form, seed, rows, vectors):
    once = encoded(weight(seed, rows, vectors * form.dimension), form).decode()
    assert torch.equal(encoded(once, form).decode(), once)


@given(forms, seeds, st.integers(1, 6), st.integers(1, 60))
def test_stored_size_is_what_the_form_says(form, seed, rows, columns):
    stored = encoded(weight(seed, rows, columns), form)
    vectors = rows * -(-columns // form.dimension)
    assert stored.nbytes == form.stored_bits(rows, columns) / 8
    assert stored.nbytes * 8 == vectors * form.bits + 32 * stored.table.numel()
    assert stored.codes.numel() == vectors
    assert len(stored.table) == min(2**form.bits, vectors)


@given(forms, seeds)
def test_masked_weights_are_zero_and_have_no_part_in_the_table(form, seed):
    w = weight(seed)
    mask = w.abs() > 0.5
    stored = encoded(w, form, mask)
    assert (stored.decode()[~mask] == 0).all()
    assert stored.nbytes * 8 == form.stored_bits(8, 33) + 8 * 33
    assert torch.equal(stored.table, fit_vectors(torch.where(mask, w, 7.0), form, mask))
    again = encode_vectors(stored.decode(), form, stored.table, mask)
    assert torch.equal(again.decode(), stored.decode())


def test_a_weight_that_is_all_removed_is_zero():
    w = weight(0)
    assert not encoded(w, VectorForm(), torch.zeros_like(w, dtype=torch.bool)).decode().any()


@given(seeds)
def test_a_fit_is_at_a_minimum_of_k_means(seed):
    """The textbook's rounds, begun at the table, find no table that is much closer."""
    w, form = weight(seed, 16, 32), VectorForm(bits=2, dimension=2)
    vectors, table = w.reshape(-1, 2), fit_vectors(w, form)
    error = torch.cdist(vectors, table).square().amin(1).mean()
    for _ in range(50):
        codes = torch.cdist(vectors, table).argmin(1)
        table = torch.stack([vectors[codes == code].mean(0) for code in range(4)])
    assert error <= 1.05 * torch.cdist(vectors, table).square().amin(1).mean()


def test_sixteen_vectors_of_two_are_as_close_as_theory_says():
    """At 2 bits a normal number: better than 0.1175, the least of numbers one at a time (Max 1960, table I),
    and no better than 1/16, the rate-distortion bound."""
    w = weight(0, 256, 256)
    error = float((encoded(w, VectorForm(bits=4, dimension=2)).decode() - w).square().mean())
    assert 1 / 16 < error < 0.1175


def test_vectors_are_closer_than_single_weights_at_the_same_bits():
    w = weight(0, 128, 128)
    one = CodebookForm(bits=2, granularity="tensor")
    single = (encode_codebook(w, one, fit_table(w, one)).decode() - w).square().mean()
    joint = (encoded(w, VectorForm(bits=8, dimension=4)).decode() - w).square().mean()
    assert joint < 0.9 * single


@given(seeds)
def test_what_matters_more_is_closer(seed):
    w, form = weight(seed, 16, 32), VectorForm(bits=3, dimension=4)
    importance = torch.where(torch.arange(32) % 4 < 1, 50.0, 0.5)[None]
    counted, plain = encoded(w, form, importance=importance).decode(), encoded(w, form).decode()
    loss = lambda got: float(((got - w).square() * importance).sum())  # noqa: E731
    assert loss(counted) < loss(plain)


def test_the_same_seed_gives_the_same_table_and_another_another():
    w, form = weight(0, 64, 64), VectorForm(bits=4)
    assert torch.equal(fit_vectors(w, form, seed=1), fit_vectors(w, form, seed=1))
    assert not torch.equal(fit_vectors(w, form, seed=1), fit_vectors(w, form, seed=2))


def test_a_large_weight_is_fitted_on_a_sample_nearly_as_well():
    w, form = weight(0, 128, 256), VectorForm(bits=2, dimension=2)  # 16384 vectors, of which 512 are fitted
    error = float((encoded(w, form).decode() - w).square().mean())
    assert error < 1.1 * float((encoded(w[:16], form).decode() - w[:16]).square().mean())


@pytest.mark.parametrize(
    "w",
    [
        torch.zeros(3, 7),
        torch.full((3, 7), 0.3),
        torch.tensor([[1.5]]),
        torch.tensor([[0.0]]),
        torch.full((2, 5), 3e38),
        torch.tensor([[3e38, -3e38, 0.0]]),
        torch.full((2, 5), 1e-38),
        torch.tensor([[1e-30, 1e30, -1.0]]),
    ],
    ids=["zero", "constant", "one", "one zero", "huge", "largest", "tiny", "mixed"],
)
def test_few_distinct_vectors_are_exact(w):
    assert torch.equal(encoded(w, VectorForm(bits=2, dimension=3)).decode(), w)


@pytest.mark.parametrize("magnitude", [1e-38, 1e38])
def test_many_huge_and_tiny_vectors_stay_finite(magnitude):
    w = weight(0, 8, 32).clamp(-3, 3) * magnitude
    decoded = encoded(w, VectorForm(bits=3, dimension=2)).decode()
    assert torch.isfinite(decoded).all()
    assert (decoded - w).double().square().sum() < 0.3 * w.double().square().sum()


def test_decoded_weight_has_the_shape_of_the_weight():
    assert encoded(torch.randn(4, 3, 2, 2), VectorForm(dimension=5)).decode().shape == (4, 3, 2, 2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 1}, "bits must be in 2..12, got 1"),
        ({"bits": 13}, "bits must be in 2..12, got 13"),
        ({"dimension": 1}, "dimension must be at least 2, got 1"),
    ],
)
def test_a_form_out_of_range_is_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        VectorForm(**settings)


def test_the_gradient_of_an_entry_is_the_sum_over_its_vectors():
    w, form = weight(0, 4, 8).requires_grad_(), VectorForm(bits=2, dimension=2)
    encoder = VectorEncoder(form, fit_vectors(w, form))
    (table,) = encoder.learn_grid(w.detach())
    slope = weight(1, 4, 8)
    (encoder.projected(w) * slope).sum().backward()
    codes = encoder(w).codes.reshape(-1).long()
    wanted = torch.stack([slope.reshape(-1, 2)[codes == entry].sum(0) for entry in range(4)])
    torch.testing.assert_close(table.grad, wanted)
    torch.testing.assert_close(w.grad, slope)


def test_a_learned_table_reduces_the_error_of_outputs():
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(16, 6))
    form = VectorForm(bits=3, dimension=2)
    encoder = VectorEncoder(form, fit_vectors(root[0].weight, form))
    layer = attach(root, "0", encoder, "test")
    x = torch.randn(128, 16) @ torch.randn(16, 16)
    wanted = layer.layer(x).detach()
    optimizer = torch.optim.Adam(encoder.learn_grid(layer.layer.weight.detach()), lr=0.0003)
    losses = []
    for _ in range(50):
        loss = (root(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    freeze(root)
    assert (root(x) - wanted).square().mean().item() < 0.97 * losses[0]
