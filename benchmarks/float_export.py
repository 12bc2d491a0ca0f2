"""Float ONNX files that rivals start from, by torch's own exporters, no pass of flyweight over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from flyweight.measure.graph import quiet_tracer

Exporter = Literal["torch.export", "TorchScript"]
OPSETS: Mapping[Exporter, int] = {"torch.export": 20, "TorchScript": 18}


def export_float(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    *,
    axes: Mapping[int, str],
    exporter: Exporter = "torch.export",
) -> None:
    """Write ``module`` in eval mode, weights inside the file.

    Args:
        inputs: Example of each input of ``forward``, in its order; they name the file's inputs.
        axes: Dynamic axes of every input, axis to name.
        exporter: TorchScript's is the older one; its graph can be the faster one, and wrong at other shapes.
    """
    module.eval()
    with quiet_tracer():
        if exporter == "torch.export":
            _with_torch_export(module, inputs, path, axes)
        else:
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                path,
                dynamo=False,
                input_names=list(inputs),
                dynamic_axes={name: dict(axes) for name in inputs},
                opset_version=OPSETS[exporter],
            )


def _with_torch_export(
    module: nn.Module, inputs: Mapping[str, Tensor], path: Path, axes: Mapping[int, str]
) -> None:
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        dynamo=True,
        input_names=list(inputs),
        dynamic_shapes=tuple(dict(axes) for _ in inputs),
        opset_version=OPSETS["torch.export"],
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(path, external_data=False)
