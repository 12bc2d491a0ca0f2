"""Normal floats: the published table, closeness, size, projection, extremes, masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.normal_float import NormalFloatForm, encode_normal_float, normal_table

# Dettmers et al. 2023, appendix E
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip

seeds = st.integers(0, 2**31)
forms = st.builds(
    lambda bits, size: NormalFloatForm(bits=bits, group_size=size),
    st.integers(2, 8),
    st.sampled_from([0, 2, 5, 64]),
)


def weight(seed: int, rows: int = 4, columns: int = 13, magnitude: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude


def test_the_table_of_four_bits_is_the_published_one():
    torch.testing.assert_close(normal_table(4), torch.tensor(PUBLISHED), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_table_ascends_from_minus_one_over_zero_to_one(bits):
    table = normal_table(bits)
    assert len(table) == 2**bits
    assert (table.diff() > 0).all()
    assert (float(table[0]), float(table[2 ** (bits - 1) - 1]), float(table[-1])) == (-1.0, 0.0, 1.0)


@given(forms, seeds, st.integers(1, 5), st.integers(1, 24), st.floats(1e-30, 1e30))
def test_the_error_is_at_most_half_the_widest_gap(form, seed, rows, columns, magnitude):
    w = weight(seed, rows, columns, magnitude)
    stored = encode_normal_float(w, form)
    half = float(normal_table(form.bits).diff().max()) / 2
    size = form.group_size or columns
    scale = stored.scale.repeat_interleave(size, 1)[:, :columns]
    assert ((stored.decode() - w).abs() <= scale * half * 1.0001).all()


@given(forms, seeds, st.integers(1, 5), st.integers(1, 24), st.floats(1e-30, 1e30))
def test_encoding_twice_changes_nothing(form, seed, rows, columns, magnitude):
    once = encode_normal_float(weight(seed, rows, columns, magnitude), form)
    again = encode_normal_float(once.decode(), form)
    assert torch.equal(again.decode(), once.decode())


@given(forms, seeds, st.integers(1, 5), st.integers(1, 100))
def test_stored_size_is_what_the_form_says(form, seed, rows, columns):
    stored = encode_normal_float(weight(seed, rows, columns), form)
    assert stored.nbytes == form.stored_bits(rows, columns) / 8
    assert stored.nbytes * 8 == rows * columns * form.bits + stored.scale.numel() * 32


@given(forms, seeds)
def test_masked_weights_are_zero_and_only_kept_ones_are_paid(form, seed):
    w = weight(seed)
    mask = w.abs() > 0.5
    stored = encode_normal_float(w, form, mask)
    assert (stored.decode()[~mask] == 0).all()
    assert stored.nbytes == form.stored_bits(4, 13, kept=int(mask.sum())) / 8


@given(forms)
@pytest.mark.parametrize(
    "w",
    [
        torch.zeros(3, 7),
        torch.full((3, 7), -0.3),
        torch.tensor([[1.5]]),
        torch.tensor([[0.0]]),
        torch.full((2, 5), 3e38),
        torch.tensor([[3e38, -3e38, 0.0]]),
        torch.full((2, 5), 1e-38),
    ],
    ids=["zero", "constant", "one", "one zero", "huge", "largest", "tiny"],
)
def test_a_weight_of_one_magnitude_is_exact(w, form):
    assert torch.equal(encode_normal_float(w, form).decode(), w)


def test_normal_weights_are_closer_than_with_steps_of_one_size():
    w = weight(0, 64, 256)
    steps = encode_affine(w, AffineForm(bits=4, granularity="group", group_size=64)).decode()
    error = (encode_normal_float(w, NormalFloatForm()).decode() - w).square().mean()
    assert error < 0.8 * (steps - w).square().mean()


def test_decoded_weight_has_the_shape_of_the_weight():
    w = torch.randn(4, 3, 2, 2)
    assert encode_normal_float(w, NormalFloatForm(group_size=5)).decode().shape == w.shape


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 1}, "bits must be in 2..8, got 1"),
        ({"bits": 9}, "bits must be in 2..8, got 9"),
        ({"group_size": 1}, "group_size must be at least 2"),
    ],
)
def test_a_form_out_of_range_is_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        NormalFloatForm(**settings)
