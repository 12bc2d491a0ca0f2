"""What quantizing one layer does to the model's output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from flyweight.apply import apply
from flyweight.core.analysis import KL, RELATIVE
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.measure.error import folded
from flyweight.measure.profile import profile
from flyweight.measure.trials import (
    LEAST_EXAMPLES,
    TRIAL_CALLS,
    TRIAL_MACS,
    TRIALS,
    affordable,
    bytes_in_file,
    damage,
    first_outputs,
    trials,
    unit_of,
    wider_forms,
)
from flyweight.model import Model
from flyweight.planner.candidates import plan_for
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.binary import BinaryEncoder, BinaryForm
from flyweight.testing.strategies import batches_for, perceptron, residual_network, text_network


def weight_only(layers, bits, **more):
    return Plan("m", (Decision("weight_only", layers, Stage.QUANTIZE, {"bits": bits, **more}),))


def outputs(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(count, 5, generator=generator) for _ in range(2)]


def test_the_divergence_is_that_of_the_probabilities_averaged_over_examples():
    wanted, found = outputs(seed=0), outputs(seed=1)
    true, guess = (log_softmax(torch.cat(z).double().numpy(), axis=1) for z in (wanted, found))
    reference = float((np.exp(true) * (true - guess)).sum(1).mean())
    assert damage(wanted, found, KL) == pytest.approx(reference, rel=1e-9)


def test_probabilities_are_taken_as_they_are():
    logits, other = outputs(seed=0), outputs(seed=1)
    probabilities = [z.softmax(1) for z in logits], [z.softmax(1) for z in other]
    assert damage(*probabilities, KL) == pytest.approx(damage(logits, other, KL), rel=1e-4)


def test_a_class_that_is_masked_in_both_costs_nothing():
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 1.0, -torch.inf]])
    assert damage([logits], [logits.clone()], KL) == 0


def test_the_relative_error_is_of_all_outputs_together():
    wanted, found = outputs(seed=0), outputs(seed=1)
    difference = torch.cat(wanted) - torch.cat(found)
    reference = float(difference.norm() / torch.cat(wanted).norm())
    assert damage(wanted, found, RELATIVE) == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("unit", [KL, RELATIVE])
def test_damage_that_is_no_number_is_none(unit):
    wanted = outputs()
    assert damage(wanted, [z * torch.nan for z in wanted], unit) is None


def test_divergence_is_for_one_number_a_class():
    assert unit_of(torch.zeros(3, 4), classes=True) == KL
    assert unit_of(torch.zeros(3, 4), classes=False) == RELATIVE
    assert unit_of(torch.zeros(3, 4, 5), classes=True) == RELATIVE
    assert unit_of(torch.zeros(3, 1), classes=True) == RELATIVE


@pytest.mark.parametrize(("network", "layer"), [(perceptron, "2"), (text_network, "table")])
def test_damage_is_that_of_a_model_in_which_only_this_layer_is_quantized(network, layer):
    model = network()
    batches = batches_for(model)
    names = tuple(x.name for x in profile(model).layers)
    tried = trials(model, apply(model, weight_only(names, 3)), {layer: 3.0}, batches, unit=RELATIVE)
    alone = apply(model, weight_only((layer,), 3))
    wanted, found = (first_outputs(m, batches) for m in (model, alone))
    assert tried[layer].damage == pytest.approx(damage(wanted, found, RELATIVE), rel=1e-5)


def test_one_width_higher_is_that_layer_rounded_to_nearest_in_the_next_width():
    model = perceptron()
    batches = batches_for(model)
    tried = trials(model, apply(model, weight_only(("0", "2", "4"), 4)), {"2": 4.0}, batches, unit=KL)
    wider = tried["2"].wider
    eight = apply(model, weight_only(("2",), 8))
    wanted, found = (first_outputs(m, batches) for m in (model, eight))
    assert (wider.bits, wider.more_bytes) == (8, 24 * 32 / 2)
    assert wider.damage == pytest.approx(damage(wanted, found, KL), rel=1e-5)
    assert wider.damage < tried["2"].damage / 10


def test_trying_leaves_the_models_as_they_were():
    model = perceptron()
    compressed = apply(model, weight_only(("0", "2"), 4))
    batches = batches_for(model)
    before = first_outputs(model, batches) + first_outputs(compressed, batches)
    trials(model, compressed, {"0": 4.0, "2": 4.0}, batches, unit=KL)
    after = first_outputs(model, batches) + first_outputs(compressed, batches)
    assert all(map(torch.equal, before, after))
    assert not any(module._forward_hooks for module in model.module.modules())


def test_rounding_of_what_a_layer_reads_counts_as_its_own():
    model = residual_network()
    batches = batches_for(model)
    compressed = apply(model, plan_for(profile(model), "static_int8", {}), batches)
    reference = folded(model)
    tried = trials(reference, compressed, {"head": 8.0}, batches, unit=RELATIVE)["head"]
    # with weights of 16 bits, what is left is the rounding of the input
    assert 0.2 * tried.damage < tried.wider.damage < tried.damage


def test_a_layer_that_the_model_does_not_call_has_no_damage():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.read = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, input):
            return nn.functional.linear(self.used(input), self.read.weight)

    model = Model("direct", Direct(), {"input": torch.randn(1, 6)})
    compressed = apply(model, weight_only(("used",), 4))
    from flyweight.tensors.encoded import attach

    attach(compressed.module, "read", lambda weight, before: encode_affine(weight, AffineForm(bits=4)), "x")
    tried = trials(model, compressed, {"read": 4.0, "used": 4.0}, batches_for(model), unit=RELATIVE)
    assert tried["read"].damage is None
    assert tried["used"].damage > 0


def test_what_has_no_wider_width_is_not_tried_wider():
    weight = torch.randn(4, 6)
    assert list(wider_forms(encode_affine(weight, AffineForm(bits=16)), 16.0)) == []


@pytest.mark.parametrize(("bits", "wider"), [(2, 4), (3, 4), (4, 8), (6, 8), (8, 16)])
def test_the_next_width_is_one_that_files_hold(bits, wider):
    form = AffineForm(bits=bits, symmetric=False, granularity="group", group_size=4)
    found = next(wider_forms(encode_affine(torch.randn(4, 8), form), float(bits)))
    assert (found.bits, found.symmetric, found.group_size) == (wider, False, 4)


def test_signs_are_two_bits_one_width_higher_with_the_groups_they_have():
    weight = torch.randn(4, 8)
    by_row, by_group = (BinaryEncoder(BinaryForm(group_size=size))(weight, None) for size in (0, 4))
    assert next(wider_forms(by_row, 1.0)) == AffineForm(bits=2, range_method="mse")
    grouped = next(wider_forms(by_group, 1.0))
    assert (grouped.granularity, grouped.group_size) == ("group", 4)
    assert encode_affine(weight, grouped).nbytes > by_group.nbytes


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (16, 16)])
def test_bytes_are_those_of_the_width_that_the_file_holds(bits: int, stored: int):
    weight = torch.randn(4, 8)
    held = encode_affine(weight, AffineForm(bits=stored)).nbytes
    assert bytes_in_file(encode_affine(weight, AffineForm(bits=bits)), float(bits)) == held


def test_a_width_that_does_no_less_is_skipped():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    model = Model("narrow", module, {"input": torch.zeros(1, 6)})
    plan = Plan("narrow", (Decision("gptq", ("2",), Stage.QUANTIZE, {"bits": 3}),))
    batches = [{"input": torch.randn(16, 1).expand(16, 6) + 0.01 * torch.randn(16, 6)}]
    compressed = apply(model, plan, batches)
    tried = trials(model, compressed, {"2": 3.0}, batches, unit=RELATIVE)["2"]
    assert tried.wider.damage < tried.damage
    assert tried.wider.more_bytes >= 0


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("macs", [1, 10**6, 10**9, 10**12])
@pytest.mark.parametrize("layers", [1, 60, 400])
def test_trials_stay_within_their_work_or_are_the_fewest_there_can_be(layers, macs, size):
    batches = [{"input": torch.zeros(size, 1)}] * (64 // size)
    count, most = affordable(layers, batches, macs)
    passes = TRIALS * count * most
    within = passes <= TRIAL_CALLS and passes * size * macs <= TRIAL_MACS
    assert within or most == 1
    assert 1 <= most <= layers
    assert count * size >= LEAST_EXAMPLES
    assert most == layers or count * size == LEAST_EXAMPLES


def test_a_small_model_is_tried_on_all_examples():
    batches = [{"input": torch.zeros(8, 1)}] * 8
    assert affordable(20, batches, 41_000_000) == (8, 20)
