"""Trained steps of activations against the quantizer they stand for, and the formula of the source."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flyweight.recover.steps import TrainedStep
from flyweight.tensors.activation import StaticQuantizer


def values(count: int = 64, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(2, count, generator=torch.Generator().manual_seed(seed))


@given(
    bits=st.integers(2, 8),
    scale=st.floats(0.01, 2.0),
    zero=st.floats(0, 1),
    seed=st.integers(0, 1000),
    learned=st.booleans(),
)
def test_it_computes_what_its_quantizer_computes(
    bits: int, scale: float, zero: float, seed: int, learned: bool
):
    quantizer = StaticQuantizer(scale, round(zero * ((1 << bits) - 1)), bits)
    trained, x = TrainedStep(quantizer, learned=learned), values(seed=seed)
    assert torch.equal(trained(x).detach(), quantizer(x))
    assert torch.equal(trained.fixed()(x), quantizer(x))


@given(bits=st.integers(2, 8), scale=st.floats(0.05, 2.0), zero=st.integers(0, 3), seed=st.integers(0, 1000))
def test_gradients_are_those_of_the_source(bits: int, scale: float, zero: int, seed: int):
    trained = TrainedStep(StaticQuantizer(scale, zero, bits), learned=True)
    x = values(seed=seed).requires_grad_()
    trained(x).sum().backward()
    # Esser et al. 2020, equations 3 and 5, with the gradient scale of section 2.2
    v, low, high = x.detach() / scale, -zero, (1 << bits) - 1 - zero
    of_scale = torch.where(v <= low, float(low), torch.where(v >= high, float(high), v.round() - v)).sum()
    wanted = float(of_scale) / math.sqrt(64 * (high - low))
    assert float(trained.scale.grad) == pytest.approx(wanted, rel=1e-2, abs=1e-2)
    assert torch.equal(x.grad, ((v > low) & (v < high)).float())


def test_a_step_that_is_not_learned_has_no_gradient():
    trained = TrainedStep(StaticQuantizer(0.1, 0, 4), learned=False)
    x = values().requires_grad_()
    trained(x).sum().backward()
    assert not list(trained.parameters())
    assert x.grad is not None


def test_a_step_that_training_makes_negative_stays_above_0():
    trained = TrainedStep(StaticQuantizer(0.1, 0, 4), learned=True)
    with torch.no_grad():
        trained.scale.fill_(-1.0)
    assert float(trained.fixed().scale) > 0
    assert torch.isfinite(trained(values())).all()
