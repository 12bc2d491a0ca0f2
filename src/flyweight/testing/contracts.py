"""What every technique, exporter and runtime must keep; third parties call the same checks on theirs.

Each check returns nothing, or raises AssertionError with a sentence::

    @pytest.mark.parametrize("case", cases("my_rounding"), ids=str)
    @pytest.mark.parametrize("check", TECHNIQUE_CHECKS, ids=lambda check: check.__name__)
    def test_my_rounding_keeps_the_contract(case, check):
        if case.refusal:
            pytest.skip(case.refusal)
        check(case)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from flyweight import catalog
from flyweight.apply import apply
from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Plan, Scalar, Stage
from flyweight.core.protocols import Exporter, Runtime, Technique
from flyweight.core.report import Artifact
from flyweight.errors import InputError, UnsupportedError
from flyweight.evaluate.parity import parity
from flyweight.export.check import FLOAT_TOLERANCE, QUANTIZED_TOLERANCE
from flyweight.measure.agreement import relative_error
from flyweight.measure.error import FOLDING, folded
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.run.pytorch import PyTorchRuntime
from flyweight.tensors.encoded import EncodedWeight, attach, encoded_layers
from flyweight.testing.strategies import NETWORKS, WITH_A_CACHE, batches_for

PROJECTION_TOLERANCE = 1e-6  # of the largest weight: scales are rounded to float32
SIZE_TOLERANCE = 0.005
SIZE_SLACK_BYTES = 400  # of the graph, whose nodes `lower` does not know
EXPORTED_BATCHES = (1, 2, 5)
UNKNOWN_SETTING = "no_technique_knows_this"
_MAKERS = {**NETWORKS, **WITH_A_CACHE}
_MAY_FIND_NOTHING = frozenset({Stage.TRANSFORM, Stage.CACHE})  # of what the graph has, not the profile


@final
@dataclass(frozen=True, eq=False)
class Case:
    """A plan of one technique for one small network, and the network after it."""

    technique: str
    network: str
    plan: Plan

    def __str__(self) -> str:
        settings = self.plan.decisions[0].settings
        return "-".join([self.technique, self.network, *(f"{k}={v}" for k, v in settings.items())])

    @cached_property
    def model(self) -> Model:
        """Before."""
        return _MAKERS[self.network]()

    @cached_property
    def batches(self) -> Sequence[Mapping[str, Tensor]]:
        """Calibration batches."""
        return batches_for(self.model)

    @property
    def result(self) -> Model:
        """After; made once."""
        return self._applied[0]

    @property
    def change_of_input(self) -> str | None:
        """What became of the model that the result was made from; None where it is as it was."""
        return self._applied[1]

    @cached_property
    def _applied(self) -> tuple[Model, str | None]:
        module = self.model.module
        state = {name: value.clone() for name, value in module.state_dict().items()}
        kinds = {name: type(part) for name, part in module.named_modules()}
        result = apply(self.model, self.plan, self.batches)
        after = module.state_dict()
        if state.keys() != after.keys():
            return result, "the input model's entries changed"
        if not all(torch.equal(value, after[name]) for name, value in state.items()):
            return result, "the input model's weights changed"
        same = kinds == {name: type(part) for name, part in module.named_modules()}
        return result, None if same else "the input model's layers changed"

    @cached_property
    def refusal(self) -> str | None:
        """Why nothing is found to do in this network, which is for some stages alone to say; else None."""
        if self.plan.decisions[0].stage in _MAY_FIND_NOTHING:
            try:
                self.result  # noqa: B018  # made here
            except UnsupportedError as error:
                return str(error)
        return None


def cases(technique: str, settings: Mapping[str, Scalar] | None = None) -> list[Case]:
    """One for each network and each setting the technique proposes, on all layers it proposes that for.

    Args:
        technique: Its name in the catalog.
        settings: Added to those proposed, to make a long search or training short.
    """
    found = []
    instance: Technique = catalog.get("technique", technique)()
    for network, make in (_MAKERS if instance.stage is Stage.CACHE else NETWORKS).items():
        known = profile(make())
        groups = _by_settings(instance, known, settings or {})
        found += [Case(technique, network, Plan(known.model, tuple(group))) for group in groups]
    return found


def _by_settings(
    technique: Technique, known: ModelProfile, settings: Mapping[str, Scalar]
) -> Iterator[list[Decision]]:
    groups: dict[tuple[tuple[str, Scalar], ...], list[Decision]] = {}
    for decision in technique.propose(known):
        same = tuple(sorted(decision.settings.items()))
        group = replace(decision, settings={**decision.settings, **settings})
        groups.setdefault(same, []).append(group)
    yield from groups.values()


def check_promises(case: Case) -> None:
    """Shapes stay; bytes, work and code bits are as predicted: `apply` raises ContractError otherwise.

    After a transform the model computes the same.
    """
    assert case.result.output_shapes() == case.model.output_shapes()
    if case.plan.decisions[0].stage is Stage.TRANSFORM:
        for batch in case.batches:
            off = relative_error(case.model.outputs(batch), case.result.outputs(batch))
            assert off <= FOLDING, f"{case.technique} changes the outputs by {off:.3g} of their norm"


def check_input_model_unchanged(case: Case) -> None:
    """What goes in comes out as it was: same values, same modules."""
    assert case.change_of_input is None, case.change_of_input


def check_projection(case: Case) -> None:
    """Encoding what was decoded changes nothing."""
    for name, layer in encoded_layers(case.result.module):
        once = layer.encoding()
        again: EncodedWeight | None = None
        for encoder in layer.encoders:
            again = encoder(once.decode(), again)
        assert again is not None, f"layer {name!r} has no encoder"
        allowed = PROJECTION_TOLERANCE * float(once.decode().abs().max())
        moved = float((again.decode() - once.decode()).abs().max())
        assert moved <= allowed, f"layer {name!r} moves by {moved:.3g} when it is encoded again"


def check_plan_round_trips(case: Case) -> None:
    """The plan is the same after it was written and read."""
    assert Plan.from_json(case.plan.to_json()) == case.plan


def check_deterministic(case: Case) -> None:
    """The same model, plan and batches give the same outputs, bit by bit."""
    again = apply(_MAKERS[case.network](), case.plan, case.batches)
    for one, other in zip(case.result.outputs(case.batches[0]), again.outputs(case.batches[0]), strict=True):
        assert torch.equal(one, other), "two runs differ"


def check_keeps_masks(case: Case) -> None:
    """Weights that an earlier stage made zero stay zero, and their layers take the predicted bytes.

    A transform that cannot keep them may refuse.
    """
    model = folded(case.model).clone()
    decision = _joined(case.plan)
    for name in decision.layers:
        attach(model.module, name, _halve, "masked")
    technique: Technique = catalog.get("technique", case.technique)()
    expected = technique.predict(profile(model), decision)
    try:
        technique.apply(model, decision, case.batches)
    except UnsupportedError:
        if decision.stage is Stage.TRANSFORM:
            return
        raise
    layers = dict(encoded_layers(model.module))
    for name in decision.layers:
        mask = layers[name].encoding().mask
        assert mask is not None, f"the mask of layer {name!r} is lost"
        kept = layers[name].encoding().decode().reshape(mask.shape)
        assert not kept[~mask].any(), f"removed weights of layer {name!r} came back"
    got = profile(model).by_name
    for name in decision.layers:
        want, have = expected.by_name[name].storage_bytes, got[name].storage_bytes
        assert abs(want - have) <= 1, f"masked layer {name!r} takes {have} bytes, {want} were predicted"


@final
@dataclass(frozen=True, eq=False)
class _Masked:
    """Float weights, some of them removed."""

    weight: Tensor
    mask: Tensor

    @property
    def nbytes(self) -> float:
        """Stored size: kept weights, and one bit a weight."""
        return float(self.mask.sum()) * 4 + self.mask.numel() / 8

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return float(self.mask.float().mean())

    def decode(self) -> Tensor:
        """The weight as float32."""
        return self.weight * self.mask


def _halve(weight: Tensor, before: EncodedWeight | None) -> EncodedWeight:
    """The larger half of the weights."""
    return _Masked(weight, weight.abs() > weight.abs().median())


def _joined(plan: Plan) -> Decision:
    (decision,) = plan.in_stage_order()
    return decision


def check_unknown_settings_are_refused(case: Case) -> None:
    """A setting that the technique does not know is a ValueError naming it, before any work is done."""
    decision = _joined(case.plan)
    wrong = Decision(decision.technique, decision.layers, decision.stage, {UNKNOWN_SETTING: 1})
    technique: Technique = catalog.get("technique", case.technique)()
    message = ""
    try:
        technique.predict(profile(case.model), wrong)
    except ValueError as error:
        message = str(error)
    assert message, f"{case.technique} takes a setting called {UNKNOWN_SETTING!r}"
    assert UNKNOWN_SETTING in message, f"the message does not name the setting: {message}"


TECHNIQUE_CHECKS: tuple[Callable[[Case], None], ...] = (
    check_promises,
    check_input_model_unchanged,
    check_projection,
    check_plan_round_trips,
    check_deterministic,
    check_keeps_masks,
    check_unknown_settings_are_refused,
)


def check_exporter(exporter: Exporter, runtime: Runtime, model: Model, folder: Path) -> Artifact:
    """The file is as large as `lower` says, runs at several batch sizes, and computes what the model does.

    Args:
        exporter: What is checked.
        runtime: Runs its format.
        model: Written into ``folder``.
        folder: Empty.
    """
    exporter.export(model, folder / exporter.model_file)
    assert [file.name for file in folder.iterdir()] == [exporter.model_file], "other files were left"
    size = (folder / exporter.model_file).stat().st_size
    predicted = exporter.lower(profile(model)).storage_bytes
    off = abs(size - predicted)
    assert off <= max(SIZE_TOLERANCE * predicted, SIZE_SLACK_BYTES), f"{size} bytes, not {predicted:.0f}"
    artifact = Artifact(
        path=folder,
        format=exporter.format,
        model_file=exporter.model_file,
        files={exporter.model_file: size},
        sha256="",
    )
    _check_same_outputs(model, artifact, runtime)
    return artifact


def _check_same_outputs(model: Model, artifact: Artifact, runtime: Runtime) -> None:
    session, reference = runtime.load(artifact, 1), PyTorchRuntime().load(model, 1)
    quantized = next(encoded_layers(model.module), None) is not None
    tolerance = QUANTIZED_TOLERANCE if quantized else FLOAT_TOLERANCE
    for size in EXPORTED_BATCHES:
        (batch,) = batches_for(model, count=1, size=size)
        inputs = {name: value.numpy() for name, value in batch.items()}
        parity([reference(inputs)], [list(session(inputs))], [f"batch {size}"], tolerance=tolerance)


def check_runtime(runtime: Runtime, source: Artifact | Model, inputs: Mapping[str, np.ndarray]) -> None:
    """Same inputs, same outputs with the batch on axis 0; inputs that do not fit are an InputError.

    Args:
        runtime: What is checked.
        source: Of one of its formats.
        inputs: That ``source`` takes, at least one example.
    """
    session = runtime.load(source, 1)
    first, second = session(inputs), session(inputs)
    batch = len(next(iter(inputs.values())))
    assert all(isinstance(output, np.ndarray) for output in first), "outputs must be arrays"
    assert all(len(output) == batch for output in first), "axis 0 of an output must be the batch"
    same = (np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(same), "the same inputs give other outputs"
    name = next(iter(inputs))
    others = {key: value for key, value in inputs.items() if key != name}
    for what, wrong in {
        "a missing input": others,
        "an unknown input": {**inputs, "no_such_input": inputs[name]},
        "another dtype": {**inputs, name: inputs[name].astype(np.complex64)},
        "another number of axes": {**inputs, name: inputs[name][..., None, None]},
    }.items():
        _check_refused(lambda wrong=wrong: session(wrong), what)  # type: ignore[misc]


def _check_refused(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except InputError:
        return
    raise AssertionError(f"{what} must be an InputError")
