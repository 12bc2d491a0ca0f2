"""Carry out a plan, checking every promise a technique makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, final, runtime_checkable

from torch import Tensor, fx

from flyweight import catalog
from flyweight.core.layer import LayerProfile, ModelProfile
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.core.protocols import Technique
from flyweight.errors import ContractError, InputError, NothingFound, UnsupportedError
from flyweight.measure.agreement import check_wrapping
from flyweight.measure.error import folded
from flyweight.measure.graph import capture
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.tensors.encoded import freeze

STORAGE_TOLERANCE = 1e-6  # beyond one byte: sizes are added up in another order
_COUNTS = (
    "macs",
    "input_elements",
    "output_elements",
    "encoding",
    "code_bits",
    "group_size",
    "codebook",
    "activation_mode",
    "activation_bits",
)
TYPICAL = 8  # examples, on which files measure how products are computed


@runtime_checkable
class AppliesTogether(Protocol):
    """A technique that takes all its decisions of a plan at once, where one looks at what others change."""

    def apply_together(
        self, model: Model, decisions: Sequence[Decision], batches: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """As `Technique.apply`, for decisions that name different layers."""


@final
@dataclass(frozen=True, eq=False)
class Applied:
    """A plan carried out.

    Attributes:
        model: A new one, with frozen layers.
        plan: What was carried out: without the decisions that found nothing to change.
        notes: One sentence on each technique that found nothing.
    """

    model: Model
    plan: Plan
    notes: tuple[str, ...] = ()


def apply(model: Model, plan: Plan, batches: Sequence[Mapping[str, Tensor]] = ()) -> Model:
    """The new model alone of `carry_out`."""
    return carry_out(model, plan, batches).model


def carry_out(model: Model, plan: Plan, batches: Sequence[Mapping[str, Tensor]] = ()) -> Applied:
    """A new model with ``plan`` carried out; ``model`` is left as it was.

    Batch norms are folded before the first layer is quantized, so that the codes hold what the file will
    multiply by.

    Args:
        model: What the plan was made for.
        plan: Its layers are names of the model's modules.
        batches: Calibration batches, input name to (batch, ...).

    Raises:
        InputError: The plan does not fit the model, see `predicted`.
        UnsupportedError: The model can neither be traced nor computes the same with encoded layers, or no
            decision of the plan finds anything to change.
        ContractError: A technique changed the output shapes, or its layers are not what it predicted.
    """
    expected = predicted(plan, profile(model))
    shapes = model.output_shapes()
    quantizes = any(decision.stage >= Stage.TRANSFORM for decision in plan.decisions)
    result = (folded(model) if quantizes else model).clone()
    _make_wrappable(result, plan, batches)
    idle: dict[Decision, NothingFound] = {}
    decisions = plan.in_stage_order()
    for group in _together(decisions):
        try:
            _carry_out(group, result, batches)
        except NothingFound as reason:
            idle |= dict.fromkeys(group, reason)
        if result.output_shapes() != shapes:
            layers = ", ".join(name for decision in group for name in decision.layers)
            raise ContractError(f"{group[0].technique} on {layers} changed the output shapes")
    if decisions and len(idle) == len(decisions):
        reasons = "; ".join(dict.fromkeys(map(str, idle.values())))
        raise UnsupportedError(f"{reasons}; choose another technique")
    freeze(result.module)
    check_promises(expected, profile(result))
    notes = dict.fromkeys(f"{reason}; left out of the plan" for reason in idle.values())
    result.typical_inputs = _typical(batches)
    return Applied(result, _without(plan, idle), tuple(notes))


def _typical(batches: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor] | None:
    return {name: value[:TYPICAL] for name, value in batches[0].items()} if batches else None


def _together(decisions: Sequence[Decision]) -> Iterator[tuple[Decision, ...]]:
    """What is carried out at once: all decisions of a technique that takes several, else one by one."""
    groups: dict[object, list[Decision]] = {}
    for decision in decisions:
        takes_several = isinstance(catalog.get("technique", decision.technique)(), AppliesTogether)
        key = (decision.stage, decision.technique) if takes_several else decision
        groups.setdefault(key, []).append(decision)
    yield from map(tuple, groups.values())


def _carry_out(decisions: Sequence[Decision], model: Model, batches: Sequence[Mapping[str, Tensor]]) -> None:
    technique: Technique = catalog.get("technique", decisions[0].technique)()
    if isinstance(technique, AppliesTogether):
        technique.apply_together(model, decisions, batches)
    else:
        technique.apply(model, decisions[0], batches)


def _without(plan: Plan, idle: Iterable[Decision]) -> Plan:
    """The plan without decisions that `Plan.in_stage_order` gave."""
    left = {(decision.stage, name) for decision in idle for name in decision.layers}
    kept = (d for d in plan.decisions if (d.stage, d.layers[0]) not in left)
    return replace(plan, decisions=tuple(kept))


def _make_wrappable(model: Model, plan: Plan, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Make the module a graph where its code would not take encoded layers for its own, in place."""
    layers = tuple(dict.fromkeys(name for decision in plan.decisions for name in decision.layers))
    if not layers or isinstance(model.module, fx.GraphModule):
        return
    try:
        check_wrapping(model, layers, batches[0] if batches else model.example_inputs)
    except UnsupportedError as reason:
        try:
            model.module = capture(model)
        except UnsupportedError as error:
            raise UnsupportedError(f"{reason}; {error}") from error


def predicted(plan: Plan, before: ModelProfile) -> ModelProfile:
    """``before`` as it will be once ``plan`` is carried out, by the techniques' own predictions.

    Raises:
        InputError: The plan names an unknown layer or technique, a wrong stage, or a setting out of range.
    """
    _check_names(plan, before)
    expected = before
    for decision in plan.in_stage_order():
        try:
            technique: Technique = catalog.get("technique", decision.technique)()
            expected = technique.predict(expected, decision)
        except ValueError as error:
            first, *others = decision.layers
            where = repr(first) + (f" and {len(others)} more" if others else "")
            raise InputError(f"plan: {error} (in the decision for {where})") from error
        if decision.stage != technique.stage:
            raise InputError(f"plan: {decision.technique} belongs to stage {technique.stage.name.lower()}")
    return expected


def _check_names(plan: Plan, known: ModelProfile) -> None:
    for decision in plan.decisions:
        idle = [name for name in decision.layers if name in known.unused]
        if idle:
            raise InputError(
                f"the plan names layer {idle[0]!r}, whose output nothing uses, and no file holds: leave "
                "it out of the plan"
            )
        missing = [name for name in decision.layers if name not in known.by_name]
        if missing:
            some = ", ".join(sorted(known.by_name)[:5]) + (", ..." if len(known.by_name) > 5 else "")
            raise InputError(
                f"the plan names layer {missing[0]!r}, which {known.model!r} does not have, or which is of a "
                f"kind without weights to quantize; it has {some}"
            )


def check_promises(expected: ModelProfile, got: ModelProfile) -> None:
    """Raise ContractError where a profile is not what was predicted."""
    for name, want in expected.by_name.items():
        if name not in got.by_name:
            raise ContractError(f"layer {name!r} was lost while the plan was carried out")
        have: LayerProfile = replace(got.by_name[name], tied_to=want.tied_to)
        if abs(have.storage_bytes - want.storage_bytes) > STORAGE_TOLERANCE * want.storage_bytes + 1:
            raise ContractError(
                f"layer {name!r} takes {have.storage_bytes:.0f} bytes, "
                f"{want.storage_bytes:.0f} were predicted"
            )
        for count in _COUNTS:
            if getattr(have, count) != getattr(want, count):
                raise ContractError(
                    f"layer {name!r} has {count} {getattr(have, count)}, {getattr(want, count)} was predicted"
                )
