"""Plans worth trying, best hope first.

For now a short fixed list: one technique over all the layers it takes, or several joined by `JOIN`, each in
its own stage. A plan that is chosen layer by layer is one more producer of the same `Plan`, and takes this
module's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flyweight import catalog
from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Plan, Scalar, Stage
from flyweight.core.protocols import Technique
from flyweight.errors import UnsupportedError

JOIN = "+"
_CONVOLUTIONS = frozenset({"conv1d", "conv2d"})


def candidates(
    profile: ModelProfile, techniques: Sequence[str], settings: Mapping[str, Scalar]
) -> Iterator[tuple[str, Plan]]:
    """(name, plan) in the order in which they should be tried.

    Args:
        profile: Of the float model.
        techniques: Names from the catalog, ``"equalization+weight_only"`` for both in one plan; empty for the
            automatic list.
        settings: Given to each technique; of those in one plan, to those that know them; one of the automatic
            list that cannot take them all is left out.

    Raises:
        ValueError: A technique or setting is unknown, two in one plan are of one stage, or none of the
            techniques can take the settings.
        UnsupportedError: A named technique takes none of the model's layers.
    """
    for name in techniques:
        yield name, plan_for(profile, name, settings)
    if techniques:
        return
    convolutional = any(layer.op in _CONVOLUTIONS for layer in profile.layers)
    # Measured: static integer convolutions are 2 to 3.5 times as fast as float; transformers lose accuracy
    # with static ranges and nothing in speed with dynamic ones. Weight-only is the last resort: small, seldom
    # fast.
    order = ("static_int8", "dynamic_int8") if convolutional else ("dynamic_int8", "static_int8")
    tried = [*(name for name in order if _layers(profile, name)), "weight_only"]
    _check_known(settings, tried)
    yield from _that_take(profile, tried, settings)
    if not settings:
        four_bits: Mapping[str, Scalar] = {"bits": 4, "granularity": "group", "range_method": "mse"}
        yield "weight_only (4 bits)", plan_for(profile, "weight_only", four_bits)


def plan_for(profile: ModelProfile, technique: str, settings: Mapping[str, Scalar]) -> Plan:
    """One technique on every layer it takes, or several, joined by `JOIN`, each on every layer it takes.

    Raises:
        ValueError: A setting is unknown or out of range, or two techniques are of one stage.
        UnsupportedError: One takes none of the model's layers; a transform that is joined with others is then
            left out, which `left_out` tells.
    """
    names = technique.split(JOIN)
    if len(names) > 1:
        _check_known(settings, names)
        _check_stages(names)
    decisions = []
    for name in names:
        if len(names) > 1 and _stage(name) == Stage.TRANSFORM and not _layers(profile, name):
            continue
        known = settings if len(names) == 1 else _known(name)  # one alone refuses what it does not know
        own = {key: value for key, value in settings.items() if key in known}
        decisions += _decisions(profile, name, own)
    plan = Plan(profile.model, tuple(decisions))
    expected = profile
    for decision in plan.in_stage_order():  # settings out of range show before any work is done
        instance: Technique = catalog.get("technique", decision.technique)()
        expected = instance.predict(expected, decision)
    return plan


def left_out(name: str, plan: Plan) -> tuple[str, ...]:
    """One sentence on each of the techniques joined in ``name`` that `plan_for` left out of the plan."""
    planned = {decision.technique for decision in plan.decisions}
    joined = name.split(JOIN) if JOIN in name else []
    return tuple(
        f"{technique} takes none of the layers of {plan.model!r}; left out of the plan"
        for technique in joined
        if technique not in planned
    )


def _decisions(profile: ModelProfile, technique: str, settings: Mapping[str, Scalar]) -> list[Decision]:
    layers = _layers(profile, technique)
    instance: Technique = catalog.get("technique", technique)()
    if not layers:
        kinds = ", ".join(sorted({layer.op for layer in profile.layers})) or "no known layer"
        raise UnsupportedError(
            f"{technique} takes none of the layers of {profile.model!r} ({kinds}); try another technique"
        )
    if "group_size" in settings and "granularity" not in settings and "granularity" in _known(technique):
        settings = {**settings, "granularity": "group"}
    return [Decision(technique, (name,), instance.stage, settings) for name in layers]


def _layers(profile: ModelProfile, technique: str) -> list[str]:
    proposed = catalog.get("technique", technique)().propose(profile)
    return list(dict.fromkeys(name for decision in proposed for name in decision.layers))


def _that_take(
    profile: ModelProfile, techniques: Sequence[str], settings: Mapping[str, Scalar]
) -> Iterator[tuple[str, Plan]]:
    refusals: list[str] = []
    for name in techniques:
        try:
            plan = plan_for(profile, name, settings)
        except ValueError as error:
            refusals.append(str(error))
        else:
            yield name, plan
    if len(refusals) == len(techniques):
        raise ValueError("no technique takes these settings: " + "; ".join(refusals))


def _check_stages(techniques: Sequence[str]) -> None:
    taken: dict[Stage, str] = {}
    for name in techniques:
        stage = _stage(name)
        if stage in taken:
            raise ValueError(
                f"{taken[stage]} and {name} are both of stage {stage.name.lower()}, and a layer has one "
                "decision in each: name one of them"
            )
        taken[stage] = name


def _stage(technique: str) -> Stage:
    stage: Stage = catalog.get("technique", technique)().stage
    return stage


def _known(technique: str) -> frozenset[str]:
    return frozenset(getattr(catalog.get("technique", technique), "defaults", ()))


def _check_known(settings: Mapping[str, Scalar], techniques: Sequence[str]) -> None:
    known = {key for name in techniques for key in _known(name)}
    unknown = next((key for key in settings if key not in known), None)
    if unknown is not None:
        raise ValueError(f"no technique has a setting {unknown!r}; known: {', '.join(sorted(known))}")
