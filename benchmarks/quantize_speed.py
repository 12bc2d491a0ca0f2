"""How long GPTQ takes: MiniLM by groups of 32, ResNet-56 by channel; beside llm-compressor's GPTQ.

Both round the same layers on the same calibration data, on the same number of threads, one after the other.
Ours is timed as it is by default, and as the rival's algorithm alone: without the refits of scales, the other
grids and the coordinate descent that follow it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks import cifar10, minilm
from benchmarks.cifar_low_bits import CALIBRATION_IMAGES, opened
from benchmarks.claims import OURS, Claim, Context, Outcome, compared
from benchmarks.rounded import rounded
from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Scalar, Stage
from flyweight.measure.profile import profile
from flyweight.model import Model

BITS = 4
# each layer towards its own float weight, no refits of scales and no descent: what the rival computes
AS_PUBLISHED: Mapping[str, Scalar] = {"target": "layer", "rounds": 0}
LONGEST_S = 60.0
SENTENCES, MOST_TOKENS = 512, 64
BATCH = 32
RIVAL = "llm-compressor's GPTQ"


def run(context: Context) -> Outcome:
    """One model after the other."""
    torch.set_num_threads(context.threads)
    found = [
        _timed("MiniLM W4 g32", _minilm(), _sentences(context), 32, context),
        _timed("ResNet-56 W4", opened("resnet56", context), _images(context), 0, context),
    ]
    checks = tuple(check for outcome in found for check in outcome.checks)
    return Outcome(checks=checks, notes=(_NOTE,), versions=found[0].versions)


def _timed(
    what: str, model: Model, inputs: Mapping[str, Tensor], group_size: int, context: Context
) -> Outcome:
    layers = [x.name for x in profile(model).layers if x.op != "embedding" and "pooler" not in x.name]
    settings: dict[str, Scalar] = {"bits": BITS}
    if group_size:
        settings |= {"granularity": "group", "group_size": group_size}
    count = len(next(iter(inputs.values())))
    batches = [{k: v[i : i + BATCH] for k, v in inputs.items()} for i in range(0, count, BATCH)]
    theirs = rounded(
        model, layers, inputs, method="gptq", bits=[BITS], group_size=group_size,
        work=context.work / model.name,
    )  # fmt: skip
    rival = {RIVAL: theirs.seconds[BITS]}
    ours = _seconds(model, layers, settings, batches)
    alone = _seconds(model, layers, {**settings, **AS_PUBLISHED}, batches)
    return Outcome(
        checks=(
            compared(f"{what}: time, s", rival | {OURS: ours}, bar=LONGEST_S, direction="at most"),
            compared(
                f"{what}: time with target=layer and rounds=0, s",
                rival | {OURS: alone},
                bar=theirs.seconds[BITS],
                direction="at most",
            ),
        ),
        versions=theirs.versions,
    )


def _seconds(
    model: Model,
    layers: Sequence[str],
    settings: Mapping[str, Scalar],
    batches: Sequence[Mapping[str, Tensor]],
) -> float:
    plan = Plan(model.name, (Decision("gptq", tuple(layers), Stage.QUANTIZE, settings),))
    start = time.perf_counter()
    apply(model, plan, batches)
    return time.perf_counter() - start


def _minilm() -> Model:
    axes = {name: {0: "batch", 1: "tokens"} for name in minilm.example()}
    return Model("minilm", minilm.encoder(), minilm.example(), axes)


def _sentences(context: Context) -> dict[str, Tensor]:
    pairs = minilm.stsb(context.data("stsb", "stsb-en-train.csv"))
    count = BATCH if context.quick else SENTENCES
    chosen = np.linspace(0, len(pairs.first) - 1, count).round().astype(int)
    encoded = minilm.tokenizer()(
        [pairs.first[i] for i in chosen],
        padding="max_length", truncation=True, max_length=MOST_TOKENS, return_tensors="pt",
    )  # fmt: skip
    return {name: encoded[name] for name in minilm.example()}


def _images(context: Context) -> dict[str, Tensor]:
    count = BATCH if context.quick else CALIBRATION_IMAGES
    pixels = cifar10.images(context.shared, "train", sheets=1)[:count]
    return {"x": torch.from_numpy(cifar10.normalised(pixels))}


_NOTE = (
    "one run each, the rival's first. Its core takes a matrix, a second moment and scales; a walk of ours "
    "through the traced model gives it these, with convolutions unfolded and scales searched, and is in its "
    "time as in ours"
)

CLAIM = Claim(
    "quantize_speed",
    "GPTQ of MiniLM and of ResNet-56 takes less than a minute on two cores; without what we add to it, no "
    "longer than a rival's.",
    "at most 60 s each; towards each layer by itself, without refits and descent, at most the time of "
    "llm-compressor's GPTQ",
    run,
)
