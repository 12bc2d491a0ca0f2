"""Models of texts whose linear layers rivals round to few bits, all on the same calibration texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import rivals
from benchmarks.claims import Context
from benchmarks.rivals import AUTOROUND, K_QUANT
from benchmarks.rounded import rounded, with_weights
from flyweight.model import Model

NEAREST, HQQ, GPTQ = "round to nearest", "HQQ", "llm-compressor's GPTQ"
AUTOROUND_NAME, K_QUANT_NAME = "AutoRound", "ONNX Runtime's k-quant"
METHODS = {"nearest": NEAREST, "hqq": HQQ, "gptq": GPTQ}
AUTOROUND_STEPS = 200  # its own default

Rounded = dict[int, dict[str, Model]]  # bits to candidates


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """What is rounded.

    Attributes:
        model: The float model.
        layers: Names of the linear layers to be rounded.
        calibration: What the model reads, (texts, tokens), by input.
        folder: The model as Hugging Face's files.
        auto_class: Of transformers, which opens it.
        prefix: Of a layer's name here, before its name there.
    """

    model: Model
    layers: tuple[str, ...]
    calibration: Mapping[str, np.ndarray]
    folder: Path
    auto_class: str
    prefix: str

    def batches(self, size: int) -> list[dict[str, Tensor]]:
        """The calibration texts, those of a batch cut where the longest of them ends."""
        count = len(next(iter(self.calibration.values())))
        return [
            _cut({k: v[i : i + size] for k, v in self.calibration.items()}) for i in range(0, count, size)
        ]


def _cut(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    mask = arrays.get("attention_mask")
    end = None if mask is None else int(mask.sum(1).max())
    return {name: torch.from_numpy(value[:, :end]) for name, value in arrays.items()}


def rounded_by_rivals(
    subject: Subject, bits: Sequence[int], group_size: int, context: Context, *, autoround: bool = True
) -> tuple[Rounded, dict[str, str]]:
    """What each rival makes of the model, and the versions of their packages; AutoRound only if asked.

    Raises:
        MissingDependency: A rival cannot be installed.
    """
    work = context.work / "-".join(map(str, (subject.model.name, *bits, group_size)))
    work.mkdir(parents=True)
    found: Rounded = {width: {} for width in bits}
    versions: dict[str, str] = {}
    inputs = {name: torch.from_numpy(values) for name, values in subject.calibration.items()}
    for method, called in METHODS.items():
        theirs = rounded(
            subject.model, subject.layers, inputs,
            method=method, bits=bits, group_size=group_size, work=work / method,
        )  # fmt: skip
        versions |= theirs.versions
        for width in bits:
            found[width][called] = theirs.models[width]
    if not autoround:
        return found, versions
    answer = _with_autoround(subject, bits, group_size, work, quick=context.quick)
    versions |= answer["versions"]
    for width in bits:
        weights = load_file(answer["files"][str(width)])
        named = {subject.prefix + name: weight for name, weight in weights.items()}
        found[width][AUTOROUND_NAME] = with_weights(subject.model, named)
    return found, versions


def rounded_by_k_quant(subject: Subject, group_size: int, context: Context) -> tuple[Model, dict[str, str]]:
    """What ONNX Runtime's k-quant makes of the model with 4 bits, and its version."""
    module, work = subject.model.module, context.work / f"k-quant-{group_size}"
    weights = {f"{name}.weight": module.get_parameter(f"{name}.weight") for name in subject.layers}
    arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
    job = {"bits": 4, "group_size": group_size, "out": str(work / "rounded.npz")}
    answer = rivals.run(K_QUANT, job, arrays=arrays, work=work)
    with np.load(answer["file"], allow_pickle=False) as stored:
        found = {name: torch.from_numpy(value) for name, value in stored.items()}
    return with_weights(subject.model, found), answer["versions"]


def _with_autoround(
    subject: Subject, bits: Sequence[int], group_size: int, work: Path, *, quick: bool
) -> dict[str, Any]:
    job = {
        "model": str(subject.folder),
        "auto_class": subject.auto_class,
        "layers": [f"{name.removeprefix(subject.prefix)}.weight" for name in subject.layers],
        "bits": list(bits),
        "group_size": group_size,
        "iters": 2 if quick else AUTOROUND_STEPS,
        "out": str(work / "autoround"),
    }
    return rivals.run(AUTOROUND, job, arrays=subject.calibration, work=work)
