"""stories260K with weights of 4, 3 and 2 bits in groups of 32: nats a token more than float, beside rivals.

All linear layers but the head are quantized, with one scale and one zero point a group, by every candidate.
Nothing has seen the stories that are judged. Time is counted in seconds of processors, which a busy machine
does not stretch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from benchmarks import stories
from benchmarks.claims import FLOAT, OURS, Check, Claim, Context, Outcome, compared
from benchmarks.low_bits import AUTOROUND_STEPS, Subject, rounded_by_rivals
from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Scalar, Stage
from flyweight.data.examples import Splits
from flyweight.model import Model
from flyweight.recover.recover import Teaching, recover
from flyweight.recover.settings import TrainingSettings
from flyweight.tasks.custom import Custom

BITS = (4, 3, 2)
GROUP_SIZE = 32
MOST_ROUNDED: Mapping[int, float] = {4: 0.035, 3: 0.17, 2: 0.9}  # nats a token above float
MOST_TUNED: Mapping[int, float] = {4: 0.02, 3: 0.08, 2: 0.5}
MOST_SECONDS = 2 * 300.0  # five minutes on two processors
SEQUENCES_A_STEP = 8
QUICK_SEQUENCES, QUICK_STORIES = 32, 5
FORM: Mapping[str, Scalar] = {"granularity": "group", "group_size": GROUP_SIZE, "symmetric": False}
LEARNED: Mapping[str, Scalar] = {"outputs": "logits", "batch_size": SEQUENCES_A_STEP}
STEPS_ON_MORE = 1500
TUNED = TrainingSettings(
    epochs=3,
    tune="scales",
    outputs="logits",
    train_batch_size=SEQUENCES_A_STEP,
    precision="float32",
)
TASK = f"{Path(stories.__file__)}:likelihood"
GPTQ_ONLY, WITH_TUNING = "flyweight's gptq alone", "tuned"


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class _Ours:
    """What we make of the model, width by width.

    Attributes:
        subject: The float model and its calibration texts.
        more: (sequences, tokens) calibration text and what the model wrote itself, in random order.
        splits: ``more``, to be learned from.
        quick: Few steps.
        seconds: Of processors, that each took.
    """

    subject: Subject
    more: Tensor
    splits: Splits
    quick: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def simple(self, bits: int) -> Model:
        """GPTQ alone."""
        decision = self._decision("gptq", {"bits": bits})
        return self._timed(f"W{bits}: {GPTQ_ONLY}", lambda: self._applied(decision))

    def rounded(self, bits: int) -> Model:
        """Learned rounding on the calibration texts."""
        decision = self._decision("learned_rounding", {**LEARNED, "bits": bits, **self._short()})
        return self._timed(f"W{bits}: learned_rounding", lambda: self._applied(decision))

    def tuned(self, bits: int) -> Model:
        """Learned rounding on more text; then, the codes kept, scales, zero points and norms tuned on it."""
        settings = {"steps": STEPS_ON_MORE, **LEARNED, "bits": bits, **self._short()}
        plan = Plan(self.subject.model.name, (self._decision("learned_rounding", settings),))
        batches = [{"input_ids": ids} for ids in torch.split(self.more, SEQUENCES_A_STEP)]
        rounded = self._timed(
            f"W{bits}: learned_rounding on more text", lambda: apply(self.subject.model, plan, batches)
        )
        teaching = Teaching(task=Custom(TASK), splits=self.splits, batches=batches[:1], settings=TUNED)
        return self._timed(
            f"W{bits}: {WITH_TUNING}", lambda: recover(self.subject.model, rounded, plan, teaching).model
        )

    def _short(self) -> Mapping[str, Scalar]:
        return {"steps": 2} if self.quick else {}

    def _decision(self, technique: str, settings: Mapping[str, Scalar]) -> Decision:
        return Decision(technique, self.subject.layers, Stage.QUANTIZE, {**FORM, **settings})

    def _applied(self, decision: Decision) -> Model:
        plan = Plan(self.subject.model.name, (decision,))
        return apply(self.subject.model, plan, self.subject.batches(SEQUENCES_A_STEP))

    def _timed(self, what: str, work: Callable[[], Model]) -> Model:
        start = time.process_time()
        found = work()
        self.seconds[what] = time.process_time() - start
        return found


def run(context: Context) -> Outcome:
    """Rounding of every candidate at every width, then tuning of ours."""
    torch.set_num_threads(context.threads)
    context.data("stories260K", "hf", "model.safetensors")
    model = stories.opened(context.shared)
    sequences = QUICK_SEQUENCES if context.quick else None
    calibration = stories.calibration(context.shared, sequences=sequences)
    written = stories.written(context.shared, sequences=sequences or stories.WRITTEN)
    more = np.concatenate([calibration, written])
    more = more[np.random.default_rng(0).permutation(len(more))]
    subject = Subject(
        model=model,
        layers=stories.quantized_layers(model),
        calibration={"input_ids": calibration},
        folder=context.shared / "data" / "stories260K" / "hf",
        auto_class="AutoModelForCausalLM",
        prefix="model.",
    )
    ours = _Ours(
        subject=subject,
        more=torch.from_numpy(more),
        splits=stories.splits(context.shared, more),
        quick=context.quick,
    )
    widths = BITS[:1] if context.quick else BITS
    found, versions = rounded_by_rivals(subject, widths, GROUP_SIZE, context)
    before = _nats(model, context)
    checks = [Check(what="nats a token of fp32", ours=None, rivals={FLOAT: before})]
    for bits in widths:
        checks += _of_width(
            bits, ours, {k: _nats(v, context) - before for k, v in found[bits].items()}, context, before
        )
    checks += [
        Check(
            what=f"{what}, s of processors",
            ours=seconds,
            bar=MOST_SECONDS if what.endswith(WITH_TUNING) else None,
            direction="at most",
        )
        for what, seconds in ours.seconds.items()
    ]
    return Outcome(checks=tuple(checks), notes=_NOTES, versions=versions)


def _of_width(
    bits: int, ours: _Ours, rivals: Mapping[str, float], context: Context, before: float
) -> list[Check]:
    above = {
        name: _nats(made, context) - before
        for name, made in (
            (GPTQ_ONLY, ours.simple(bits)),
            (OURS, ours.rounded(bits)),
            (WITH_TUNING, ours.tuned(bits)),
        )
    }
    rounded = {**rivals, GPTQ_ONLY: above[GPTQ_ONLY], OURS: above[OURS]}
    return [
        compared(
            f"W{bits}: nats a token above fp32, rounded", rounded, bar=MOST_ROUNDED[bits], direction="at most"
        ),
        compared(
            f"W{bits}: nats a token above fp32, scales, zero points and norms tuned",
            {**rivals, OURS: above[WITH_TUNING]},
            bar=MOST_TUNED[bits],
            direction="at most",
        ),
    ]


def _nats(model: Model, context: Context) -> float:
    def logits(ids: Tensor) -> Tensor:
        return model.outputs({"input_ids": ids})[0]

    return stories.nats(logits, context.shared, count=QUICK_STORIES if context.quick else stories.EVALUATED)


_NOTES = (
    "every candidate has the same calibration text, 154 stories in sequences of 256 tokens, and stores the "
    "same codes, scales and zero points; AutoRound 4 % more: it leaves out layers whose width is no multiple "
    "of 32, and so was given wider ones, filled up with zeros",
    f"AutoRound takes {AUTOROUND_STEPS} steps a block, its own; rivals have no step of tuning, and are shown "
    "as they are beside ours",
    f"tuned: rounding and tuning learn from {stories.WRITTEN} sequences besides that the float model wrote "
    "itself, drawn from its own probabilities; the time that is held against the bar is that of tuning, "
    "rounding has a line of its own",
    "learned rounding compares probabilities that the float model gives the tokens of the calibration text; "
    "rivals compare what layers or blocks put out",
)

CLAIM = Claim(
    "stories_low_bits",
    "A tiny language model loses less with 4, 3 and 2 bits than with AutoRound, GPTQ or HQQ at equal bytes.",
    "nats a token above float, rounded: at most 0.035 with W4, 0.17 with W3, 0.9 with W2; with scales, zero "
    "points and norms tuned for at most five minutes on two processors: 0.02, 0.08, 0.5",
    run,
)
