"""Binary and ternary weights: the formulas of the papers, size, extreme values, masks, learned scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flyweight.tensors.binary import BinaryEncoder, BinaryForm, encode_binary
from flyweight.tensors.encoded import attach, freeze

FORMS = {
    "binary": BinaryForm(),
    "sign": BinaryForm(scaled=False),
    "ternary": BinaryForm(levels="ternary"),
    "binary by group": BinaryForm(group_size=5),
    "ternary by group": BinaryForm(levels="ternary", group_size=5),
}
forms = st.sampled_from(list(FORMS.values()))
seeds = st.integers(0, 2**31)


def weight(seed: int, rows: int = 4, columns: int = 13, magnitude: float = 1.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude


@given(seeds)
def test_binary_is_the_sign_times_the_mean_magnitude(seed):
    w = weight(seed)
    wanted = torch.stack([row.sign() * row.abs().mean() for row in w])
    torch.testing.assert_close(encode_binary(w, BinaryForm()).decode(), wanted)


@given(seeds, st.floats(0.5, 2.0))
def test_no_other_scale_of_signs_is_closer(seed, factor):
    w = weight(seed)
    best = encode_binary(w, BinaryForm()).decode()
    assert (w - best).square().sum() <= (w - factor * best).square().sum() * (1 + 1e-6)


@given(seeds)
def test_ternary_is_the_formula_of_the_paper(seed):
    w = weight(seed)
    for row, got in zip(w, encode_binary(w, BinaryForm(levels="ternary")).decode(), strict=True):
        threshold = 0.7 * row.abs().mean()  # equation 6
        large = row.abs() > threshold
        wanted = row.sign() * large * row[large].abs().mean()  # equation 5
        torch.testing.assert_close(got, wanted)


def test_ternary_is_closer_than_binary_to_normal_weights():
    w = weight(0, 1, 10_000)
    error = {name: float((encode_binary(w, FORMS[name]).decode() - w).square().mean()) for name in FORMS}
    # Of a normal distribution: 1 - 2/pi, and 1 - (mean of what is above the threshold)^2 * its share
    assert error["binary"] == pytest.approx(0.363, abs=0.02)
    assert error["ternary"] == pytest.approx(0.19, abs=0.02)


@given(forms, seeds, st.integers(1, 5), st.integers(1, 24), st.floats(1e-30, 1e30))
def test_encoding_twice_changes_nothing(form, seed, rows, columns, magnitude):
    once = encode_binary(weight(seed, rows, columns, magnitude), form).decode()
    again = encode_binary(once, form).decode()
    torch.testing.assert_close(again, once, rtol=0, atol=float(1e-6 * once.abs().max()))


@given(forms, seeds, st.integers(1, 5), st.integers(1, 24))
def test_stored_size_is_what_the_form_says(form, seed, rows, columns):
    encoded = encode_binary(weight(seed, rows, columns), form)
    groups = 0 if not form.scaled else rows * (-(-columns // form.group_size) if form.group_size else 1)
    wanted = rows * columns * (1 if form.levels == "binary" else 2) + 32 * groups
    assert encoded.nbytes == form.stored_bits(rows, columns) / 8 == wanted / 8
    assert not form.scaled or encoded.scale.numel() == groups


@given(forms, seeds)
def test_masked_weights_are_zero_and_have_no_part_in_the_scale(form, seed):
    w = weight(seed)
    mask = w.abs() > 0.5
    encoded = encode_binary(w, form, mask)
    assert (encoded.decode()[~mask] == 0).all()
    assert encoded.nbytes == form.stored_bits(4, 13, kept=int(mask.sum())) / 8
    assert encoded.density == pytest.approx(float(mask.float().mean()))
    if form.levels == "binary" and form.scaled and not form.group_size and mask[0].any():
        assert float(encoded.scale[0]) == pytest.approx(float(w[0][mask[0]].abs().mean()), rel=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
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
def test_extreme_weights_stay_finite_and_constant_ones_are_exact(w, form):
    decoded = encode_binary(w, form).decode()
    assert torch.isfinite(decoded).all()
    if form.scaled and bool((w == w[0, 0]).all()):
        torch.testing.assert_close(decoded, w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_row_that_is_all_removed_is_zero(form):
    w = weight(0)
    mask = torch.ones_like(w, dtype=torch.bool)
    mask[1] = False
    assert (encode_binary(w, form, mask).decode()[1] == 0).all()


def test_decoded_weight_has_the_shape_of_the_weight():
    assert encode_binary(torch.randn(4, 3, 2, 2), BinaryForm(group_size=5)).decode().shape == (4, 3, 2, 2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"scaled": False, "levels": "ternary"}, "bare signs have no scales"),
        ({"scaled": False, "group_size": 4}, "bare signs have no scales"),
    ],
)
def test_a_form_that_cannot_be_is_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        BinaryForm(**settings)


@pytest.mark.parametrize("name", ["binary", "ternary", "binary by group", "ternary by group"])
def test_learning_scales_starts_where_the_weight_puts_them(name):
    w, encoder = weight(0), BinaryEncoder(FORMS[name])
    before = encoder(w).decode()
    (scale,) = encoder.learn_grid(w)
    torch.testing.assert_close(encoder.projected(w).detach(), encoder(w).decode())
    assert torch.equal(encoder(w).scale, scale)
    if FORMS[name].levels == "binary":
        assert torch.equal(encoder(w).decode(), before)


def test_bare_signs_have_nothing_to_learn():
    assert BinaryEncoder(FORMS["sign"]).learn_grid(weight(0)) == ()


@given(seeds, st.sampled_from(["binary", "ternary"]))
def test_gradients_are_those_of_the_levels(seed, name):
    w, encoder = weight(seed, 1, 20).requires_grad_(), BinaryEncoder(FORMS[name])
    (scale,) = encoder.learn_grid(w.detach())
    encoder.projected(w).sum().backward()
    v, signs = w.detach() / scale.detach(), w.detach().sign()
    # Binary: of s * sign(w). Ternary: Esser et al. 2020, equation 3, with the levels -1, 0 and 1.
    ternary = torch.where(v.abs() < 1, v.round() - v, signs)
    wanted = (signs if name == "binary" else ternary).sum() / 20**0.5
    assert float(scale.grad) == pytest.approx(float(wanted), rel=1e-3, abs=1e-3)
    assert torch.equal(w.grad, (v.abs() < 1).float())


@pytest.mark.parametrize("name", ["binary", "ternary by group"])
def test_learned_scales_reduce_the_error_of_outputs(name):
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(16, 6))
    encoder = BinaryEncoder(FORMS[name])
    layer = attach(root, "0", encoder, "test")
    x = torch.randn(128, 16) @ torch.randn(16, 16)
    wanted = layer.layer(x).detach()
    (scale,) = encoder.learn_grid(layer.layer.weight.detach())
    optimizer = torch.optim.Adam([scale], lr=0.003)
    losses = []
    for _ in range(50):
        loss = (root(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    freeze(root)
    assert (root(x) - wanted).square().mean().item() < 0.97 * losses[0]


def test_removed_weights_stay_removed_while_scales_are_learned():
    w, mask = weight(0), weight(0).abs() > 0.5
    before = encode_binary(w, BinaryForm(), mask)
    encoder = BinaryEncoder(BinaryForm(levels="ternary"))
    encoder.learn_grid(w, before)
    assert (encoder.projected(w, before)[~mask] == 0).all()
