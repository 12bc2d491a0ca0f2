"""Signal to quantization noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.measure.error import output_sqnr_db, sqnr_db, weight_sqnr_db
from flyweight.model import Model
from flyweight.testing.strategies import batches_for, perceptron

EIGHT_BITS = Plan("perceptron", (Decision("weight_only", ("0", "4"), Stage.QUANTIZE),))


def test_sqnr_is_ten_log_of_signal_over_noise():
    signal = torch.tensor([3.0, 4.0])
    assert sqnr_db(signal, signal + torch.tensor([0.3, 0.4])) == pytest.approx(20.0, rel=1e-5)


def test_uniform_rounding_loses_six_decibels_a_bit():
    x = torch.rand(1, 100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for bits in (4, 6, 8):
        model = Model("m", nn.Sequential(nn.Linear(100_000, 1)), {"input": torch.zeros(1, 100_000)})
        model.module[0].weight.data = x
        plan = Plan("m", (Decision("weight_only", ("0",), Stage.QUANTIZE, {"bits": bits}),))
        (found,) = weight_sqnr_db(apply(model, plan).module).values()
        assert found == pytest.approx(20 * math.log10(2**bits - 2), abs=0.2)


def test_sqnr_without_signal_or_noise_is_none():
    assert sqnr_db(torch.zeros(2), torch.ones(2)) is None
    assert sqnr_db(torch.ones(2), torch.ones(2)) is None


def test_output_error_is_measured_over_all_batches():
    model = perceptron()
    result = apply(model, EIGHT_BITS)
    batches = batches_for(model, count=2)
    found = output_sqnr_db(model, result, batches)
    x = torch.cat([batch["input"] for batch in batches])
    with torch.no_grad():
        exact, rounded = model.module[0](x), result.module[0](x)
    assert found["0"] == pytest.approx(sqnr_db(exact, rounded), rel=1e-4)
    assert found["4"] < found["0"]
