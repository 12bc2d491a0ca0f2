"""Affine codes: error bounds, size, extreme values, masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.ranges import Grid, InputStatistics, range_of

bits = st.integers(2, 8)
seeds = st.integers(0, 2**31)
forms = st.builds(
    lambda b, symmetric, grouping, method: AffineForm(
        bits=b, symmetric=symmetric, granularity=grouping[0], group_size=grouping[1], range_method=method
    ),
    bits,
    st.booleans(),
    st.sampled_from([("tensor", 0), ("channel", 0), ("group", 2), ("group", 5), ("group", 64)]),
    st.sampled_from(["minmax", "percentile", "mse"]),
)


def weight(seed: int, rows: int = 4, columns: int = 13, magnitude: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude


def over_columns(values: torch.Tensor, form: AffineForm, columns: int) -> torch.Tensor:
    return values.repeat_interleave(max(form.group_size, 1), 1)[:, :columns] if form.group_size else values


@given(forms, st.integers(1, 5), st.integers(1, 24), st.floats(1e-30, 1e30), seeds)
def test_minmax_error_is_at_most_half_a_step(form, rows, columns, magnitude, seed):
    form = AffineForm(
        bits=form.bits,
        symmetric=form.symmetric,
        granularity=form.granularity,
        group_size=form.group_size,
    )
    w = weight(seed, rows, columns, magnitude)
    encoded = encode_affine(w, form)
    # Rounding the zero point moves the covered range by up to half a step; its end is then off by that too.
    allowed = 0.5001 if form.symmetric else 1.0001
    assert ((encoded.decode() - w).abs() <= over_columns(encoded.scale, form, columns) * allowed).all()


@given(forms, seeds)
def test_encoding_twice_changes_nothing(form, seed):
    once = encode_affine(weight(seed), form).decode()
    if form.range_method == "minmax" or form.symmetric:
        torch.testing.assert_close(
            encode_affine(once, form).decode(), once, rtol=0, atol=1e-6 * once.abs().max()
        )


@given(forms)
def test_more_bits_take_more_bytes(form):
    sizes = [
        AffineForm(
            bits=b, symmetric=form.symmetric, granularity=form.granularity, group_size=form.group_size
        ).stored_bits(7, 33)
        for b in range(2, 9)
    ]
    assert sizes == sorted(set(sizes))


@given(forms, seeds)
def test_stored_size_is_what_the_form_says(form, seed):
    encoded = encode_affine(weight(seed, 3, 11), form)
    assert encoded.nbytes == form.stored_bits(3, 11) / 8
    assert encoded.scale.numel() == form.group_count(3, 11)


@given(forms)
@pytest.mark.parametrize(
    "w",
    [
        torch.zeros(3, 7),
        torch.full((3, 7), 0.3),
        torch.full((3, 7), -2.0),
        torch.tensor([[1.5]]),
        torch.tensor([[0.0]]),
        torch.full((2, 5), 1e30),
        torch.tensor([[1e38, -1e38, 0.0]]),
        torch.full((2, 5), 1e-38),
        torch.tensor([[1e-30, 1e30, -1.0]]),
    ],
    ids=["zero", "constant", "negative", "one", "one zero", "huge", "largest", "tiny", "mixed"],
)
def test_extreme_weights_stay_finite_and_keep_their_zeros(w, form):
    decoded = encode_affine(w, form).decode()
    assert torch.isfinite(decoded).all()
    assert (decoded[w == 0] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.3, -2.0, 1e30, 1e-30])
def test_constant_weight_is_exact(symmetric, value):
    w = torch.full((2, 5), value)
    decoded = encode_affine(w, AffineForm(symmetric=symmetric)).decode()
    torch.testing.assert_close(decoded, w, rtol=1e-6, atol=0)


@given(seeds)
def test_last_short_group_has_its_own_range(seed):
    w = weight(seed, 2, 7)
    w[:, 5:] *= 100
    whole = encode_affine(w, AffineForm(granularity="group", group_size=5)).decode()
    parts = [encode_affine(part, AffineForm()).decode() for part in (w[:, :5], w[:, 5:])]
    torch.testing.assert_close(whole, torch.cat(parts, 1))


def test_asymmetric_codes_use_the_whole_grid_where_weights_are_positive():
    w = torch.linspace(0, 1, 256).reshape(1, -1)
    asymmetric = encode_affine(w, AffineForm(symmetric=False))
    assert (int(asymmetric.codes.min()), int(asymmetric.codes.max())) == (-128, 127)
    error = (asymmetric.decode() - w).abs().max()
    assert error < (encode_affine(w, AffineForm()).decode() - w).abs().max() / 2 + 1e-7


def test_symmetric_grid_leaves_out_the_lowest_code():
    grid = Grid(8, True)
    assert (grid.lowest, grid.highest) == (-127, 127)


@given(bits, st.booleans(), seeds)
def test_mse_range_is_never_worse_than_minmax(b, symmetric, seed):
    grid = Grid(b, symmetric)
    groups = weight(seed, 6, 50).pow(3)

    def error(method):
        scale, zero = grid.scale_and_zero_point(*range_of(groups, grid, method))
        codes = grid.quantize(groups, scale[:, None], zero[:, None])
        return ((codes - zero[:, None]) * scale[:, None] - groups).double().square().sum(1)

    assert (error("mse") <= error("minmax") * (1 + 1e-5)).all()


def test_percentile_leaves_out_one_value_in_ten_thousand():
    groups = torch.zeros(1, 10_000)
    groups[0, 0], groups[0, 1:] = 1000.0, torch.linspace(-1, 1, 9_999)
    low, high = range_of(groups, Grid(8, True), "percentile")
    assert float(high) == pytest.approx(1000.0)
    longer = torch.cat([groups, torch.linspace(-1, 1, 10_000)[None]], 1)
    low, high = range_of(longer, Grid(8, True), "percentile")
    assert (float(low), float(high)) == pytest.approx((-1.0, 1.0))


def test_percentile_of_few_values_is_minmax():
    groups = weight(0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            range_of(groups, Grid(8, True), "percentile"),
            range_of(groups, Grid(8, True), "minmax"),
            strict=True,
        )
    )


@given(forms, seeds)
def test_masked_weights_are_zero_and_only_kept_ones_are_paid(form, seed):
    w = weight(seed)
    mask = w.abs() > 0.5
    encoded = encode_affine(w, form, mask)
    assert (encoded.decode()[~mask] == 0).all()
    assert encoded.density == pytest.approx(float(mask.float().mean()))
    assert encoded.nbytes == form.stored_bits(4, 13, kept=int(mask.sum())) / 8


def test_decoded_weight_has_the_shape_of_the_weight():
    assert encode_affine(torch.randn(4, 3, 2, 2), AffineForm()).decode().shape == (4, 3, 2, 2)


def test_least_scale_raises_small_scales_only():
    w = torch.tensor([[1.0, -1.0], [1e-9, 1e-9]])
    encoded = encode_affine(w, AffineForm(), least_scale=torch.full((2,), 1e-3))
    assert encoded.scale.reshape(-1).tolist() == pytest.approx([1 / 127, 1e-3])
    assert (encoded.decode()[1] == 0).all()


def test_least_scale_needs_one_scale_a_channel():
    with pytest.raises(ValueError, match="least_scale is for symmetric weights"):
        encode_affine(torch.ones(2, 2), AffineForm(granularity="tensor"), least_scale=torch.ones(2))


@pytest.mark.parametrize(
    ("w", "reason"),
    [
        (torch.zeros(0, 3), "cannot be quantized"),
        (torch.tensor(1.0), "cannot be quantized"),
        (torch.tensor([[float("nan")]]), "NaN or infinite"),
        (torch.tensor([[float("inf")]]), "NaN or infinite"),
    ],
)
def test_weight_without_finite_values_is_refused(w, reason):
    with pytest.raises(ValueError, match=reason):
        encode_affine(w, AffineForm())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bits": 1}, "bits must be in 2..8 or 16, got 1"),
        ({"bits": 9}, "bits must be in 2..8 or 16, got 9"),
        ({"granularity": "group", "group_size": 1}, "group_size must be at least 2"),
        ({"granularity": "channel", "group_size": 32}, "only for granularity 'group'"),
    ],
)
def test_form_out_of_range_is_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        AffineForm(**settings)


def test_what_fills_a_short_group_counts_nothing():
    w = weight(0, 2, 7)
    energy = torch.ones(1, 7)
    energy[0, 6] = 100
    form = AffineForm(bits=3, granularity="group", group_size=5, range_method="adaptive")
    whole = encode_affine(w, form, inputs=InputStatistics(energy)).decode()
    by_row = AffineForm(bits=3, range_method="adaptive")
    last = encode_affine(w[:, 5:], by_row, inputs=InputStatistics(energy[:, 5:])).decode()
    torch.testing.assert_close(whole[:, 5:], last)
