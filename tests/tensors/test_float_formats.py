"""Narrower floats: the formats' own limits, closeness, size, projection, extremes, masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyweight.tensors.float_formats import FLOAT_FORMATS, FloatForm, encode_float

forms = st.sampled_from([FloatForm(name) for name in FLOAT_FORMATS])
narrow = st.sampled_from([FloatForm(name) for name in FLOAT_FORMATS[2:]])
seeds = st.integers(0, 2**31)
# Half the distance of neighbours, relative: 10, 7, 3 and 2 explicit digits.
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}
# Half the least distance of neighbours; of eight bits, relative to the largest value of the format.
LEAST = {
    "float16": 2**-25,
    "bfloat16": 2**-134,
    "float8_e4m3fn": 2**-10 / 448,
    "float8_e5m2": 2**-17 / 57344,
}


def weight(seed: int, rows: int = 4, columns: int = 13, magnitude: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude


@given(forms, seeds, st.integers(1, 5), st.integers(1, 24), st.floats(1e-3, 1e3))
def test_the_error_is_at_most_half_the_distance_of_neighbours(form, seed, rows, columns, magnitude):
    w = weight(seed, rows, columns, magnitude)
    largest = w.abs().amax(1, keepdim=True) if form.scaled else torch.ones(1, 1)
    allowed = torch.maximum(w.abs() * ROUNDING[form.format], LEAST[form.format] * largest)
    assert ((encode_float(w, form).decode() - w).abs() <= allowed * 1.001).all()


@given(forms, seeds, st.integers(1, 5), st.integers(1, 24), st.floats(1e-6, 1e3))
def test_encoding_twice_changes_nothing(form, seed, rows, columns, magnitude):
    once = encode_float(weight(seed, rows, columns, magnitude), form).decode()
    again = encode_float(once, form).decode()
    torch.testing.assert_close(again, once, rtol=0, atol=float(1e-6 * once.abs().max()))


@given(narrow, seeds, st.floats(1e-30, 1e30))
def test_eight_bits_are_as_close_at_any_magnitude(form, seed, magnitude):
    w = weight(seed)
    wanted = encode_float(w, form).decode() * magnitude
    got = encode_float(w * magnitude, form).decode()
    near_ties = (got - wanted).abs() <= w.abs() * magnitude * ROUNDING[form.format] * 2.001
    assert near_ties.all()
    torch.testing.assert_close(got.abs().amax(1), (w * magnitude).abs().amax(1), rtol=1e-5, atol=0)


def test_float16_is_what_numpy_makes_of_it():
    w = weight(0, 64, 64)
    wanted = w.numpy().astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(encode_float(w, FloatForm("float16")).decode().numpy(), wanted)


def test_every_value_of_eight_bits_is_kept():
    """All codes of the format but NaN and infinity, in one row: their largest makes the scale 1."""
    for name in FLOAT_FORMATS[2:]:
        codes = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name)).float()
        row = codes[torch.isfinite(codes)][None]
        assert torch.equal(encode_float(row, FloatForm(name)).decode(), row)


@given(forms, seeds, st.integers(1, 5), st.integers(1, 40))
def test_stored_size_is_what_the_form_says(form, seed, rows, columns):
    stored = encode_float(weight(seed, rows, columns), form)
    scales = 0 if stored.scale is None else stored.scale.numel()
    assert stored.nbytes == form.stored_bits(rows, columns) / 8 == stored.values.nbytes + 4 * scales


@given(forms, seeds)
def test_masked_weights_are_zero_and_only_kept_ones_are_paid(form, seed):
    w = weight(seed)
    mask = w.abs() > 0.5
    stored = encode_float(w, form, mask)
    assert (stored.decode()[~mask] == 0).all()
    assert stored.nbytes == form.stored_bits(4, 13, kept=int(mask.sum())) / 8


@given(forms)
@pytest.mark.parametrize(
    "w",
    [
        torch.zeros(3, 7),
        torch.full((3, 7), -0.5),
        torch.tensor([[1.5]]),
        torch.tensor([[0.0]]),
        torch.tensor([[65504.0, -65504.0, 0.0]]),
        torch.full((2, 5), 2.0**-14),
    ],
    ids=["zero", "constant", "one", "one zero", "largest", "tiny"],
)
def test_a_weight_of_one_magnitude_is_kept(w, form):
    torch.testing.assert_close(encode_float(w, form).decode(), w, rtol=2**-8, atol=0)


@given(narrow)
@pytest.mark.parametrize(
    "w", [torch.full((2, 5), 3e38), torch.tensor([[3e38, -3e38, 0.0]]), torch.tensor([[1e-38, 0.0]])]
)
def test_eight_bits_hold_huge_and_tiny_rows(w, form):
    torch.testing.assert_close(encode_float(w, form).decode(), w, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("name", "largest"), [("float16", "65520"), ("bfloat16", "3.4e38")], ids=["float16", "bfloat16"]
)
def test_what_is_too_large_is_refused_with_the_largest(name, largest):
    with pytest.raises(ValueError, match=f"are too large for {name}, which ends at"):
        encode_float(torch.tensor([[1.0, float(largest)]]), FloatForm(name))


def test_decoded_weight_has_the_shape_of_the_weight():
    for name in FLOAT_FORMATS:
        assert encode_float(torch.randn(4, 3, 2, 2), FloatForm(name)).decode().shape == (4, 3, 2, 2)
