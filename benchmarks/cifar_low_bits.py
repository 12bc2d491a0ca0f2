"""CIFAR-10 ResNets with weights of 4, 3 and 2 bits, without any training, beside rivals on the same images.

Scales are by output channel, so that all candidates of a width store the same bytes. Each width is measured
on several draws of calibration images, and the mean is judged: one draw moves the accuracy by 0.1 points.
Everything is computed in PyTorch, which is what the widths have in common.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import mean
from typing import final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import cifar10
from benchmarks.claims import FLOAT, OURS, Check, Claim, Context, Outcome, compared
from benchmarks.rounded import rounded
from flyweight.apply import apply
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.planner.candidates import plan_for

MODELS = ("resnet20", "resnet56")
LARGEST_DROPS: Mapping[int, float] = {4: 0.001, 3: 0.003, 2: 0.05}
LARGEST_DROP_W4A8 = 0.002
DRAWS, CALIBRATION_IMAGES, DRAWN_FROM = 3, 512, 10_000
BATCH, CHUNK = 250, 64
RIVALS = {"gptq": "llm-compressor's GPTQ", "nearest": "round to nearest"}
DROP, CHANGED, SECONDS = "drop of accuracy", "answers changed", "time, s"


def run(context: Context) -> Outcome:
    """One model after the other."""
    torch.set_num_threads(context.threads)
    checks: list[Check] = []
    versions: dict[str, str] = {}
    for name in MODELS[: 1 if context.quick else None]:
        subject = _Subject(name, context)
        for draw in range(1 if context.quick else DRAWS):
            versions |= subject.measure(draw)
        checks += subject.checks()
    images = "512 train images" if not context.quick else "64 train images"
    return Outcome(
        checks=tuple(checks),
        notes=(
            f"each figure is the mean over draws of {images}, the same for all candidates",
            "on the 5 000 test images at hand, of which 0.001 are five; on all 10 000, fp32 has 0.9173 and "
            "0.9339",
        ),
        versions=versions,
    )


def opened(name: str, context: Context) -> Model:
    """One of the networks, with its weights."""
    os.environ[cifar10.SHARED_VARIABLE] = str(context.shared)
    module = getattr(cifar10, name)()
    module.load_state_dict(load_file(context.data("converted", f"cifar10_{name}.safetensors")))
    return Model(name, module.eval(), {"x": torch.zeros(1, 3, 32, 32)})


@final
class _Subject:
    """One network, what it answers, and what was found of it so far."""

    def __init__(self, name: str, context: Context) -> None:
        self.name, self.context = name, context
        self.model = opened(name, context)
        self.layers = [layer.name for layer in profile(self.model).layers]
        sheets = 1 if context.quick else cifar10.TEST_SHEETS
        self.images = torch.from_numpy(
            cifar10.normalised(cifar10.images(context.shared, "test", sheets=sheets))
        )
        self.truth = torch.from_numpy(cifar10.labels(context.shared, "test", examples=len(self.images)))
        self.answers = self._answers(self.model)
        self.found: dict[str, dict[str, dict[str, list[float]]]] = {
            what: defaultdict(lambda: defaultdict(list)) for what in (DROP, CHANGED, SECONDS)
        }

    def measure(self, draw: int) -> Mapping[str, str]:
        """All widths of all candidates on one draw of calibration images; the versions of the rivals."""
        images = self._calibration(draw)
        widths = list(LARGEST_DROPS)[: 1 if self.context.quick else None]
        for bits in widths:
            self._ours(f"W{bits}", "gptq", {"bits": bits}, images)
        self._ours("W4A8", "gptq+static_activations", {"bits": 4, "activation_bits": 8}, images)
        versions: dict[str, str] = {}
        for method, called in RIVALS.items():
            work = self.context.work / f"{self.name}-{method}-{draw}"
            theirs = rounded(
                self.model, self.layers, {"x": images}, method=method, bits=widths, group_size=0, work=work
            )
            versions |= theirs.versions
            for bits in widths:
                self._take(f"W{bits}", called, theirs.models[bits], theirs.seconds[bits])
        return versions

    def checks(self) -> Iterator[Check]:
        """Of every width, the mean of its draws."""
        bars = {f"W{bits}": drop for bits, drop in LARGEST_DROPS.items()} | {"W4A8": LARGEST_DROP_W4A8}
        accuracy = float((self.answers == self.truth).double().mean())
        yield Check(what=f"{self.name}: accuracy of fp32", ours=None, rivals={FLOAT: accuracy})
        for width, drops in self.found[DROP].items():
            what = f"{self.name} {width}"
            means = {key: mean(values) for key, values in drops.items()}
            for draw, value in enumerate(drops[OURS]):
                yield Check(what=f"{what}: {DROP}, draw {draw}", ours=value)
            yield compared(f"{what}: {DROP}", means, bar=bars[width], direction="at most")
            for kind in (CHANGED, SECONDS):
                values = self.found[kind][width]
                yield compared(f"{what}: {kind}", {key: mean(each) for key, each in values.items()})

    def _calibration(self, draw: int) -> Tensor:
        sheets = DRAWN_FROM // cifar10.SHEET
        count = 64 if self.context.quick else CALIBRATION_IMAGES
        chosen = np.random.default_rng(draw).choice(sheets * cifar10.SHEET, count, replace=False)
        pixels = cifar10.images(self.context.shared, "train", sheets=sheets)[chosen]
        return torch.from_numpy(cifar10.normalised(pixels))

    def _ours(
        self, width: str, technique: str, settings: Mapping[str, bool | int | float | str], images: Tensor
    ) -> None:
        start = time.perf_counter()
        plan = plan_for(profile(self.model), technique, settings)
        quantized = apply(self.model, plan, [{"x": batch} for batch in torch.split(images, CHUNK)])
        self._take(width, OURS, quantized, time.perf_counter() - start)

    def _take(self, width: str, candidate: str, model: Model, seconds: float) -> None:
        answers = self._answers(model)
        lost = (self.answers == self.truth).double().mean() - (answers == self.truth).double().mean()
        self.found[DROP][width][candidate].append(float(lost))
        self.found[CHANGED][width][candidate].append(float((answers != self.answers).double().mean()))
        self.found[SECONDS][width][candidate].append(seconds)

    @torch.no_grad()
    def _answers(self, model: Model) -> Tensor:
        return torch.cat(
            [model.outputs({"x": batch})[0].argmax(1) for batch in torch.split(self.images, BATCH)]
        )


CLAIM = Claim(
    "cifar_low_bits",
    "CIFAR-10 ResNets keep their accuracy with weights of 4 and 3 bits, without any training.",
    "drop at most 0.1 points with W4, 0.3 with W3, 5 with W2, 0.2 with W4A8; the mean of three draws",
    run,
)
