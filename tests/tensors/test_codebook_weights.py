"""Codebooks: closeness, size, projection, masks, importance, learned tables."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.codebook import CodebookEncoder, CodebookForm, encode_codebook, fit_table
from flyweight.tensors.encoded import attach, freeze

seeds = st.integers(0, 2**31)
forms = st.builds(
    lambda bits, granularity: CodebookForm(bits=bits, granularity=granularity),
    st.integers(2, 8),
    st.sampled_from(["tensor", "channel"]),
)


def weight(seed: int, rows: int = 4, columns: int = 33, magnitude: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude


def encoded(w, form, mask=None, importance=None):
    return encode_codebook(w, form, fit_table(w, form, mask, importance=importance), mask)


@given(forms, seeds, st.integers(1, 5), st.integers(1, 40), st.floats(1e-30, 1e30))
def test_every_weight_is_the_closest_entry_of_its_table(form, seed, rows, columns, magnitude):
    w = weight(seed, rows, columns, magnitude)
    stored = encoded(w, form)
    tables = stored.table.expand(rows, -1)
    wanted = torch.stack(
        [row[(row - value).abs().argmin()] for row, line in zip(tables, w, strict=True) for value in line]
    )
    distance = (stored.decode() - w).abs()
    assert (distance <= (wanted.reshape(w.shape) - w).abs() * (1 + 1e-6)).all()


@given(forms, seeds, st.integers(1, 5), st.integers(1, 40))
def test_encoding_twice_changes_nothing_even_with_a_new_table(form, seed, rows, columns):
    once = encoded(weight(seed, rows, columns), form).decode()
    assert torch.equal(encoded(once, form).decode(), once)


@given(forms, seeds, st.integers(1, 5), st.integers(1, 300))
def test_stored_size_is_what_the_form_says(form, seed, rows, columns):
    stored = encoded(weight(seed, rows, columns), form)
    assert stored.nbytes == form.stored_bits(rows, columns) / 8
    assert stored.nbytes * 8 == rows * columns * form.bits + stored.table.numel() * 32
    assert stored.table.shape[1] <= 2**form.bits


@given(forms, seeds)
def test_masked_weights_are_zero_and_have_no_part_in_the_table(form, seed):
    w = weight(seed)
    mask = w.abs() > 0.5
    stored = encoded(w, form, mask)
    assert (stored.decode()[~mask] == 0).all()
    assert stored.nbytes == form.stored_bits(4, 33, kept=int(mask.sum())) / 8
    assert torch.equal(stored.table, fit_table(torch.where(mask, w, 7.0), form, mask))
    again = encode_codebook(stored.decode(), form, stored.table, mask)
    assert torch.equal(again.decode(), stored.decode())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_table_is_closer_than_steps_of_one_size(bits):
    w = weight(0, 8, 256)
    steps = AffineForm(bits=bits, symmetric=False, range_method="mse")
    closer = (encoded(w, CodebookForm(bits=bits)).decode() - w).square().sum()
    assert closer < 0.9 * (encode_affine(w, steps).decode() - w).square().sum()


@given(seeds, st.integers(2, 4))
def test_what_matters_more_is_closer(seed, bits):
    w, form = weight(seed, 3, 200), CodebookForm(bits=bits)
    importance = torch.where(torch.arange(200) < 100, 50.0, 0.5)[None]
    counted, plain = encoded(w, form, importance=importance).decode(), encoded(w, form).decode()
    loss = lambda got: float(((got - w).square() * importance).sum())  # noqa: E731
    assert loss(counted) < loss(plain)


def test_importance_of_nothing_is_importance_of_all_alike():
    w, form = weight(0), CodebookForm()
    assert torch.equal(fit_table(w, form, importance=torch.zeros(1, 33)), fit_table(w, form))


def test_a_column_without_importance_is_near_its_weights_all_the_same():
    w, form = weight(0, 1, 33), CodebookForm(bits=4)
    w[0, 5] = 30.0
    importance = torch.ones(1, 33)
    importance[0, 5] = 0.0
    assert float((encoded(w, form, importance=importance).decode() - w)[0, 5].abs()) < 30


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
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
def test_few_distinct_values_are_exact(w, granularity):
    assert torch.equal(encoded(w, CodebookForm(bits=2, granularity=granularity)).decode(), w)


def test_decoded_weight_has_the_shape_of_the_weight():
    assert encoded(torch.randn(4, 3, 2, 2), CodebookForm()).decode().shape == (4, 3, 2, 2)


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be in 2..8, got {bits}"):
        CodebookForm(bits=bits)


def test_a_fixed_table_is_kept():
    encoder = CodebookEncoder(CodebookForm(), fit_table(weight(0), CodebookForm()))
    assert torch.equal(encoder(weight(1)).table, encoder.table)


def test_the_gradient_of_an_entry_is_the_sum_over_its_weights():
    w, encoder = weight(0, 1, 40).requires_grad_(), CodebookEncoder(CodebookForm(bits=2))
    (table,) = encoder.learn_grid(w.detach())
    slope = weight(1, 1, 40)
    (encoder.projected(w) * slope).sum().backward()
    codes = encoder(w).codes[0].long()
    wanted = torch.stack(
        [slope[0, codes == entry].sum() for entry in range(4)]
    )  # Han et al. 2015, equation 3
    torch.testing.assert_close(table.grad[0], wanted)
    torch.testing.assert_close(w.grad, slope)


def test_a_learned_table_reduces_the_error_of_outputs():
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(16, 6))
    encoder = CodebookEncoder(CodebookForm(bits=2))
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
    assert (root(x) - wanted).square().mean().item() < 0.9 * losses[0]


def test_entries_that_training_crossed_are_put_in_order():
    encoder = CodebookEncoder(CodebookForm(bits=2))
    encoder.learn_grid(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    with torch.no_grad():
        encoder.table.copy_(torch.tensor([[0.0, 2.5, 2.0, 3.0]]))
    assert encoder(torch.tensor([[2.4, 2.1]])).decode().tolist() == [[2.5, 2.0]]
