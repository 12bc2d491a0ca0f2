import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.core import plan as plan_module
from flyweight.core.plan import Decision, Plan, Stage

NAMES = st.text(min_size=1, max_size=20)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
SETTINGS = st.dictionaries(NAMES, SCALARS, max_size=4)


Parts = tuple[str, tuple[str, ...], Stage, dict[str, Any]]


@st.composite
def decisions(draw: st.DrawFn) -> list[Parts]:
    """Arguments of decisions that name no layer twice in a stage."""
    names = draw(st.lists(NAMES, unique=True, max_size=12))
    drawn: list[Parts] = []
    for stage in Stage:
        rest = list(names)
        while rest and draw(st.booleans()):
            size = draw(st.integers(1, len(rest)))
            drawn.append((draw(NAMES), tuple(rest[:size]), stage, draw(SETTINGS)))
            rest = rest[size:]
    return draw(st.permutations(drawn))


def plan_of(parts: list[Parts]) -> Plan:
    return Plan("net", tuple(Decision(*arguments) for arguments in parts))


def decision(technique: str = "weight_only", layers: tuple[str, ...] = ("fc",), **settings: Any) -> Decision:
    return Decision(technique, layers, Stage.QUANTIZE, settings)


def document(**changes: object) -> dict[str, object]:
    """The JSON form of a small valid plan, with changes."""
    return Plan("net", (decision(bits=4),)).to_dict() | changes


def with_decision(**changes: object) -> dict[str, object]:
    """The same with changes to its decision."""
    return document(decisions=[decision(bits=4).to_dict() | changes])


@given(decisions())
def test_a_plan_survives_json(parts: list[Parts]) -> None:
    plan = plan_of(parts)
    assert Plan.from_json(plan.to_json()) == plan


@given(decisions())
def test_stage_order_keeps_every_decided_layer(parts: list[Parts]) -> None:
    def decided(decisions: tuple[Decision, ...]) -> set[tuple[str, str, Stage]]:
        return {(name, d.technique, d.stage) for d in decisions for name in d.layers}

    plan = plan_of(parts)
    ordered = plan.in_stage_order()
    assert decided(ordered) == decided(plan.decisions)
    assert [d.stage for d in ordered] == sorted(d.stage for d in ordered)


def test_decisions_alike_but_for_their_layers_are_carried_out_together() -> None:
    plan = Plan("net", (decision(layers=("a",), bits=4), decision(layers=("b",), bits=4)))
    assert plan.in_stage_order() == (decision(layers=("a", "b"), bits=4),)


def test_decisions_of_other_settings_stay_apart() -> None:
    plan = Plan("net", (decision(layers=("a",), bits=4), decision(layers=("b",), bits=8)))
    assert len(plan.in_stage_order()) == 2


def test_of_layer_lists_the_stages_of_one_layer_in_order() -> None:
    quantized, pruned = decision(layers=("a", "b")), Decision("prune", ("a",), Stage.SPARSIFY)
    assert Plan("net", (quantized, pruned)).of_layer("a") == (pruned, quantized)
    assert Plan("net", (quantized, pruned)).of_layer("c") == ()


def test_add_returns_a_longer_plan_and_leaves_the_first() -> None:
    empty = Plan("net")
    assert empty.add(decision()).decisions == (decision(),)
    assert empty.decisions == ()


def test_two_decisions_of_one_stage_for_one_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="two quantize decisions for layer 'fc'"):
        Plan("net", (decision("weight_only"), decision("static_int8")))


def test_a_decision_for_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="names no layer"):
        decision(layers=())


def test_a_decision_that_names_a_layer_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="names a layer twice"):
        decision(layers=("fc", "fc"))


def test_a_setting_that_json_would_change_is_refused() -> None:
    with pytest.raises(TypeError):
        decision(bits=(4, 8))


def test_settings_cannot_be_changed_afterwards() -> None:
    given_settings = {"bits": 4}
    made = Decision("weight_only", ("fc",), Stage.QUANTIZE, given_settings)
    given_settings["bits"] = 2
    assert made.settings["bits"] == 4
    with pytest.raises(TypeError):
        made.settings["bits"] = 2  # type: ignore[index]


def test_equal_decisions_hash_alike_and_can_be_copied() -> None:
    made = decision(bits=4, symmetric=True)
    assert hash(made) == hash(decision(symmetric=True, bits=4))
    assert copy.deepcopy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_plan_is_written_in_lines_that_can_be_compared() -> None:
    lines = Plan("net", (decision(bits=4),)).to_json().splitlines()
    changed = Plan("net", (decision(bits=8),)).to_json().splitlines()
    assert sum(a != b for a, b in zip(lines, changed, strict=True)) == 1


HOSTILE = {
    "not an object": ([], "a plan is a JSON object, got list"),
    "null": (None, "a plan is a JSON object, got NoneType"),
    "no version": ({"model": "net", "decisions": []}, "plan version is None"),
    "a later version": (document(version=2), "plan version is 2; this release reads 1"),
    "an unknown key": (document(code="import os"), "unknown keys: code"),
    "a model that is no text": (document(model=7), "needs 'model'"),
    "decisions that are no list": (document(decisions={"0": {}}), "needs 'model'"),
    "a decision that is no object": (
        document(decisions=["quantize"]),
        "decision 0 of the plan must have exactly",
    ),
    "a decision with a missing key": (
        document(decisions=[{"technique": "weight_only"}]),
        "decision 0 of the plan must have exactly the keys",
    ),
    "a decision with another key": (
        with_decision(eval="1"),
        "decision 0 of the plan must have exactly the keys",
    ),
    "a technique that is no text": (with_decision(technique=["weight_only"]), "technique must be text"),
    "an unknown stage": (with_decision(stage="melt"), "stage must be one of structure,"),
    "a stage by number": (with_decision(stage=3), "stage must be one of structure,"),
    "layers that are no list": (with_decision(layers="fc"), "layers must be a list of names"),
    "layers that are no names": (with_decision(layers=[1]), "layers must be a list of names"),
    "no layers": (with_decision(layers=[]), "names no layer"),
    "a layer twice": (with_decision(layers=["fc", "fc"]), "names a layer twice"),
    "settings that are no object": (with_decision(settings=[4]), "settings must be an object"),
    "nested settings": (with_decision(settings={"bits": {"a": 1}}), "decision 0 of the plan"),
    "a null setting": (with_decision(settings={"bits": None}), "decision 0 of the plan"),
    "one layer decided twice": (
        document(decisions=[decision().to_dict(), decision("static_int8").to_dict()]),
        "two quantize decisions for layer 'fc'",
    ),
}


@pytest.mark.parametrize(("raw", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_plan_is_a_clear_error(raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "{", "\x00", "plan: yaml", "[" * 100_000])
def test_text_that_is_not_json_is_a_clear_error(text: str) -> None:
    with pytest.raises(ValueError, match="plan is not JSON"):
        Plan.from_json(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_setting_that_is_not_finite_is_a_clear_error(number: str) -> None:
    text = Plan("net", (decision(bits=4),)).to_json().replace('"bits": 4', f'"bits": {number}')
    with pytest.raises(ValueError, match=r"decisions\[0\]\.settings\.bits must be finite"):
        Plan.from_json(text)


def test_a_key_that_comes_twice_is_a_clear_error() -> None:
    text = Plan("net", (decision(bits=4),)).to_json().replace('"bits": 4', '"bits": 4, "bits": 8')
    with pytest.raises(ValueError, match="the key 'bits' is given twice"):
        Plan.from_json(text)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_decision_with_a_setting_that_is_not_finite_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="setting 'clip' of weight_only must be finite"):
        decision(clip=number)


def test_a_plan_beyond_the_size_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "MAX_PLAN_BYTES", 10)
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        Plan.from_json(Plan("net").to_json())


@given(st.recursive(st.none() | SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_json_is_a_plan_or_a_value_error(raw: object) -> None:
    with pytest.raises(ValueError, match="plan"):
        Plan.from_json(json.dumps(raw))
