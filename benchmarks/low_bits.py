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
from benchmarks.rivals import AUTOROUND, K_QUANT, WEIGHTS
from flyweight.model import Model, copied

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
    subject: Subject, bits: Sequence[int], group_size: int, context: Context
) -> tuple[Rounded, dict[str, str]]:
    """What each rival makes of the model, and the versions of their packages.

    Raises:
        MissingDependency: A rival cannot be installed.
    """
    work = context.work / f"{subject.model.name}-{group_size}"
    work.mkdir(parents=True)
    found: Rounded = {width: {} for width in bits}
    versions: dict[str, str] = {}
    for method, called in METHODS.items():
        _take(found, called, versions, subject, _with_method(subject, method, bits, group_size, work))
    answer = _with_autoround(subject, bits, group_size, work, quick=context.quick)
    _take(found, AUTOROUND_NAME, versions, subject, answer, prefix=subject.prefix)
    return found, versions


def rounded_by_k_quant(subject: Subject, group_size: int, context: Context) -> tuple[Model, dict[str, str]]:
    """What ONNX Runtime's k-quant makes of the model with 4 bits, and its version."""
    module, work = subject.model.module, context.work / f"k-quant-{group_size}"
    weights = {f"{name}.weight": module.get_parameter(f"{name}.weight") for name in subject.layers}
    arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
    job = {"bits": 4, "group_size": group_size, "out": str(work / "rounded.npz")}
    answer = rivals.run(K_QUANT, job, arrays=arrays, work=work)
    with np.load(answer["file"], allow_pickle=False) as stored:
        rounded = {name: torch.from_numpy(value) for name, value in stored.items()}
    return with_weights(subject.model, rounded), answer["versions"]


def with_weights(model: Model, weights: Mapping[str, Tensor]) -> Model:
    """A copy of the model with these weights instead of its own.

    Raises:
        KeyError: It has no weight of that name.
    """
    module = copied(model.module)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].copy_(weight)
    return Model(model.name, module, model.example_inputs, model.dynamic_axes, model.preprocessing)


def _take(
    found: Rounded,
    called: str,
    versions: dict[str, str],
    subject: Subject,
    answer: Mapping[str, Any],
    prefix: str = "",
) -> None:
    """Put a rival's answer with the others, in place."""
    versions |= answer["versions"]
    for width, candidates in found.items():
        weights = load_file(answer["files"][str(width)])
        named = {prefix + name: weight for name, weight in weights.items()}
        candidates[called] = with_weights(subject.model, named)


def _with_method(
    subject: Subject, method: str, bits: Sequence[int], group_size: int, work: Path
) -> dict[str, Any]:
    program = work / "model.pt2"
    if not program.exists():
        inputs = {name: torch.from_numpy(value[:2]) for name, value in subject.calibration.items()}
        shapes = {name: {0: torch.export.Dim("batch", min=2)} for name in inputs}
        exported = torch.export.export(subject.model.module, (), inputs, dynamic_shapes=shapes, strict=False)
        torch.export.save(exported, program)
    job = {
        "program": str(program),
        "layers": [f"{name}.weight" for name in subject.layers],
        "method": method,
        "bits": list(bits),
        "group_size": group_size,
        "out": str(work / method),
    }
    return rivals.run(WEIGHTS, job, arrays=subject.calibration, work=work)


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
