import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flyweight.tensors.affine import AffineForm
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import TrainableEncoder, attach, freeze, thaw

FORMS = [
    AffineForm(bits=bits, symmetric=symmetric, granularity=granularity, group_size=size)
    for bits in (2, 4, 8)
    for symmetric in (True, False)
    for granularity, size in (("tensor", 0), ("channel", 0), ("group", 4))
]


def weight(rows: int = 6, columns: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_fixed_grid_is_kept(form):
    anew = AffineEncoder(form)(weight())
    fixed = AffineEncoder(form, scale=anew.scale, zero_point=anew.zero_point)
    other = fixed(weight(seed=1))
    assert torch.equal(other.scale, anew.scale)
    assert torch.equal(fixed(other.decode()).codes, other.codes)
    assert torch.equal(fixed(weight()).codes, anew.codes)


def test_a_zero_point_is_needed_where_the_form_is_asymmetric():
    with pytest.raises(ValueError, match="a zero_point is needed"):
        AffineEncoder(AffineForm(symmetric=False), scale=torch.ones(1, 1))
    with pytest.raises(ValueError, match="a zero_point is needed"):
        AffineEncoder(AffineForm(), scale=torch.ones(1, 1), zero_point=torch.zeros(1, 1))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_learning_starts_where_the_weight_puts_the_grid(form):
    encoder, w = AffineEncoder(form), weight()
    before = encoder(w).decode()
    encoder.learn_grid(w)
    assert torch.allclose(encoder.projected(w).detach(), before)
    assert torch.equal(encoder(w).decode(), before)


@given(bits=st.integers(2, 8), seed=st.integers(0, 1000), scale=st.floats(0.01, 2.0))
def test_step_size_gradient_is_that_of_the_source(bits: int, seed: int, scale: float):
    form, w = AffineForm(bits=bits), weight(1, 20, seed)
    encoder = AffineEncoder(form, scale=torch.full((1, 1), scale))
    (step,) = encoder.learn_grid(w)
    encoder.projected(w).sum().backward()
    # Esser et al. 2020, equation 3, with the gradient scale of section 2.2
    v, low, high = w / scale, form.grid.lowest, form.grid.highest
    inside = torch.where(v < low, float(low), torch.where(v > high, float(high), v.round() - v))
    wanted = inside.sum() / math.sqrt(w.numel() * high)
    assert float(step.grad) == pytest.approx(float(wanted), rel=1e-3, abs=1e-3)


def test_weights_beyond_the_learned_grid_get_no_gradient():
    w = torch.tensor([[0.2, 5.0, -5.0]], requires_grad=True)
    encoder = AffineEncoder(AffineForm(bits=2), scale=torch.ones(1, 1))
    encoder.learn_grid(w)
    encoder.projected(w).sum().backward()
    assert w.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_removed_weights_stay_removed_while_the_grid_is_learned():
    mask = torch.tensor([[True, False, True]])
    encoder, w = AffineEncoder(AffineForm(symmetric=False)), torch.tensor([[1.0, 2.0, 3.0]])

    class Masked:
        nbytes, density = 1.0, 0.5

        def __init__(self) -> None:
            self.mask = mask

        def decode(self) -> torch.Tensor:
            return w * mask

    encoder.learn_grid(w, Masked())
    assert encoder.projected(w, Masked())[0, 1] == 0
    assert encoder(w, Masked()).decode()[0, 1] == 0


def test_a_thawed_layer_learns_its_grid():
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(12, 4))
    encoder = AffineEncoder(AffineForm(bits=2, symmetric=False))
    layer = attach(root, "0", encoder, "test")
    assert isinstance(encoder, TrainableEncoder)
    parameters = encoder.learn_grid(layer.layer.weight)
    assert {id(p) for p in parameters} <= {id(p) for p in root.parameters()}
    inputs = torch.randn(64, 12)
    wanted = nn.functional.linear(inputs, layer.layer.weight, layer.layer.bias).detach()
    optimizer = torch.optim.Adam(parameters, 0.003)
    losses = []
    for _ in range(150):
        loss = (root(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    freeze(root)
    frozen = (root(inputs) - wanted).square().mean().item()
    assert frozen < 0.97 * losses[0]
    thaw(root)
    assert torch.allclose(root(inputs), nn.functional.linear(inputs, layer.weight, layer.bias))
