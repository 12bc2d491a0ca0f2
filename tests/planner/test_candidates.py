"""Plans worth trying, and the settings they are given."""

from __future__ import annotations

import pytest

from flyweight.core.layer import LayerProfile, ModelProfile
from flyweight.core.plan import Stage
from flyweight.errors import UnsupportedError
from flyweight.planner.candidates import candidates, left_out, plan_for


def known(*operations):
    layers = [
        LayerProfile(name=f"{i}", op=op, rows=8, columns=16, macs=128, input_elements=16, output_elements=8)
        for i, op in enumerate(operations)
    ]
    return ModelProfile(model="m", layers=tuple(layers))


CONVOLUTIONAL = known("conv2d", "linear")
LINEAR = known("embedding", "linear")


def names(profile, techniques=(), settings=None):
    return [name for name, _ in candidates(profile, techniques, settings or {})]


def test_convolutional_networks_try_static_ranges_first():
    order = ["static_int8", "dynamic_int8", "weight_only", "weight_only (4 bits)"]
    assert names(CONVOLUTIONAL) == order


def test_other_networks_try_dynamic_ranges_first():
    assert names(LINEAR) == ["dynamic_int8", "static_int8", "weight_only", "weight_only (4 bits)"]


def test_technique_without_layers_is_left_out_of_the_automatic_list():
    assert "dynamic_int8" not in names(known("conv1d"))


def test_named_techniques_are_tried_in_their_order():
    assert names(LINEAR, ["weight_only", "dynamic_int8"]) == ["weight_only", "dynamic_int8"]


def test_named_technique_that_takes_no_layer_is_refused():
    with pytest.raises(UnsupportedError, match=r"dynamic_int8 takes none of the layers of 'm' \(conv2d\)"):
        names(known("conv2d"), ["dynamic_int8"])


def test_unknown_technique_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no technique is called 'magic'; known: .*dynamic_int8, .*"):
        names(LINEAR, ["magic"])


def test_setting_unknown_to_a_named_technique_is_refused():
    with pytest.raises(ValueError, match="dynamic_int8 has no setting 'group_size'"):
        names(LINEAR, ["dynamic_int8"], {"group_size": 32})


def test_automatic_list_gives_settings_to_all_that_take_them():
    plans = dict(candidates(LINEAR, (), {"range_method": "mse"}))
    assert list(plans) == ["dynamic_int8", "static_int8", "weight_only"]
    assert all(dict(plan.decisions[0].settings) == {"range_method": "mse"} for plan in plans.values())


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"bits": 4}, ["weight_only"]),
        ({"group_size": 16}, ["weight_only"]),
        ({"bias_correction": False}, ["static_int8"]),
        ({"range_method": "mse", "activation_granularity": "token"}, ["dynamic_int8"]),
    ],
)
def test_technique_that_cannot_take_the_settings_is_left_out_of_the_automatic_list(settings, left):
    assert names(LINEAR, settings=settings) == left


def test_setting_that_no_technique_knows_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no technique has a setting 'foo'; known: .*bits.*group_size"):
        names(LINEAR, settings={"foo": 1, "bits": 8})


def test_settings_that_no_technique_takes_together_are_refused_with_the_reasons():
    with pytest.raises(ValueError, match=r"dynamic_int8 has no setting 'group_size'.*weight_only has no"):
        names(LINEAR, settings={"group_size": 16, "activation_granularity": "token"})


def test_setting_out_of_range_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"bits must be in 2..8 or 16, got 12"):
        names(LINEAR, ["weight_only"], {"bits": 12})


def test_group_size_implies_group():
    plan = plan_for(LINEAR, "weight_only", {"bits": 4, "group_size": 16})
    assert plan.decisions[0].settings["granularity"] == "group"


def test_given_granularity_is_kept():
    plan = plan_for(LINEAR, "weight_only", {"granularity": "channel", "group_size": 16})
    assert plan.decisions[0].settings["granularity"] == "channel"


def test_plan_has_every_layer_once():
    plan = plan_for(LINEAR, "weight_only", {})
    assert [d.layers for d in plan.decisions] == [("0",), ("1",)]


def test_joined_techniques_are_one_plan_with_a_decision_a_stage():
    ((name, plan),) = candidates(CONVOLUTIONAL, ["equalization+weight_only"], {})
    assert name == "equalization+weight_only"
    assert [(d.technique, d.layers, d.stage) for d in plan.in_stage_order()] == [
        ("equalization", ("0", "1"), Stage.TRANSFORM),
        ("weight_only", ("0", "1"), Stage.QUANTIZE),
    ]


def test_joined_and_single_techniques_are_alternatives():
    assert names(CONVOLUTIONAL, ["weight_only", "equalization+weight_only"]) == [
        "weight_only",
        "equalization+weight_only",
    ]


def test_settings_go_to_the_joined_techniques_that_know_them():
    plan = plan_for(CONVOLUTIONAL, "equalization+weight_only", {"sweeps": 3, "bits": 4, "group_size": 16})
    given = {d.technique: dict(d.settings) for d in plan.decisions}
    assert given["equalization"] == {"sweeps": 3}
    assert given["weight_only"] == {"bits": 4, "group_size": 16, "granularity": "group"}


def test_setting_unknown_to_all_joined_techniques_is_refused():
    with pytest.raises(ValueError, match=r"no technique has a setting 'alpha'; known: .*bits"):
        plan_for(CONVOLUTIONAL, "equalization+weight_only", {"alpha": 0.5})


def test_setting_out_of_range_of_a_joined_technique_is_refused():
    with pytest.raises(ValueError, match=r"bits must be .* got 99"):
        plan_for(CONVOLUTIONAL, "equalization+weight_only", {"bits": 99})


def test_two_joined_techniques_of_one_stage_are_refused():
    with pytest.raises(ValueError, match="weight_only and static_int8 are both of stage quantize"):
        plan_for(CONVOLUTIONAL, "weight_only+static_int8", {})


def test_a_transform_that_takes_no_layer_is_left_out_beside_others_and_refused_alone():
    tables = known("embedding")
    plan = plan_for(tables, "equalization+weight_only", {})
    assert {decision.technique for decision in plan.decisions} == {"weight_only"}
    told = left_out("equalization+weight_only", plan)
    assert told == ("equalization takes none of the layers of 'm'; left out of the plan",)
    assert left_out("weight_only", plan) == ()
    with pytest.raises(UnsupportedError, match="equalization takes none of the layers of 'm'"):
        plan_for(tables, "equalization", {})


def test_joined_technique_that_takes_no_layer_is_refused():
    with pytest.raises(UnsupportedError, match="static_activations takes none of the layers of 'm'"):
        plan_for(known("embedding"), "weight_only+static_activations", {})
