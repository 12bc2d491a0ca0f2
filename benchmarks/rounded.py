"""A model's weights rounded by a rival, on the calibration data that ours are rounded on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import rivals
from benchmarks.rivals import WEIGHTS
from flyweight.model import Model, copied


@final
@dataclass(frozen=True, eq=False)
class Rounded:
    """What a rival made.

    Attributes:
        models: Width in bits to the model with the rounded weights, decoded.
        seconds: Width to the time that tracing and rounding took.
        versions: Of its packages.
    """

    models: Mapping[int, Model]
    seconds: Mapping[int, float]
    versions: Mapping[str, str]


def rounded(
    model: Model,
    layers: Sequence[str],
    inputs: Mapping[str, Tensor],
    *,
    method: str,
    bits: Sequence[int],
    group_size: int,
    work: Path,
) -> Rounded:
    """Round the weights of ``layers`` by ``method`` of ``rival_weights.py``, for every width.

    Args:
        model: Not changed.
        layers: Names of linear layers and convolutions.
        inputs: Calibration data, (examples, ...) by the names of the model's inputs.
        method: ``gptq``, ``hqq`` or ``nearest``.
        bits: Widths.
        group_size: Columns that share a scale; 0 by output channel.
        work: A folder for what is exchanged.
    """
    work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    program = _program(model, inputs)
    tracing = time.perf_counter() - start
    torch.export.save(program, work / "model.pt2")
    job: dict[str, Any] = {
        "program": str(work / "model.pt2"),
        "layers": [f"{name}.weight" for name in layers],
        "method": method,
        "bits": list(bits),
        "group_size": group_size,
        "out": str(work),
    }
    arrays = {name: values.numpy() for name, values in inputs.items()}
    answer = rivals.run(WEIGHTS, job, arrays=arrays, work=work)
    return Rounded(
        models={width: with_weights(model, load_file(answer["files"][str(width)])) for width in bits},
        seconds={width: tracing + answer["seconds"][str(width)] for width in bits},
        versions=answer["versions"],
    )


def _program(model: Model, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    few = {name: values[:2] for name, values in inputs.items()}
    batch = torch.export.Dim("batch", min=2)
    shapes = {name: {0: batch} for name in few}
    return torch.export.export(model.module, (), few, dynamic_shapes=shapes, strict=False)


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
