"""Checks an exported file against the PyTorch reference, at two batch sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.core.report import Artifact, Parity
from flyweight.evaluate.parity import parity
from flyweight.model import Model
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.run.pytorch import PyTorchRuntime
from flyweight.tensors.encoded import encoded_layers, input_of

FLOAT_TOLERANCE = 1e-3
# Integer kernels multiply sums by rounded scales, and MatMulNBits rounds activations by itself: now and then
# a value lands on the neighbouring code, and the layers after it carry that on. Measured: 0.003 to 0.016 on
# CNNs of 20 to 56 layers, below 0.01 on 4-bit MatMulNBits.
QUANTIZED_TOLERANCE = 0.05
# Where ranges are found at run time the last bit of a float can move every code: the reference, disturbed by
# float rounding, then differs from itself (MiniLM: 0.038), and no file can be held to less.
DISTURBANCE = 1e-6
DISTURBANCE_FACTOR = 3.0
CHECKED_BATCHES = (1, 3)


def check_parity(model: Model, artifact: Artifact, batch: Mapping[str, Tensor]) -> Parity:
    """Run ONNX Runtime on the file and the reference on the same inputs.

    Args:
        model: What was exported.
        artifact: The file.
        batch: At least one example; repeated where fewer are given.

    Raises:
        ParityError: They differ by more than the tolerance.
    """
    session = OnnxRuntime().load(artifact, threads=1)
    reference = PyTorchRuntime().load(model, threads=1)
    expected, found, shapes = [], [], []
    for size in CHECKED_BATCHES:
        inputs = {name: np.resize(v.numpy()[:size], (size, *v.shape[1:])) for name, v in batch.items()}
        inputs = {name: value for name, value in inputs.items() if name in session.input_names}
        expected.append(reference(inputs))
        found.append(session(inputs))
        shapes.append("; ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items()))
    return parity(expected, found, shapes, tolerance=_tolerance(model, batch))


def _tolerance(model: Model, batch: Mapping[str, Tensor]) -> float:
    layers = [layer for _, layer in encoded_layers(model.module)]
    if not layers:
        return FLOAT_TOLERANCE
    exact = model.outputs(batch)[0]
    generator = torch.Generator().manual_seed(0)

    def disturb(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
        x = input_of(args, kwargs)
        if not x.is_floating_point():
            return None
        return (x * (1 + DISTURBANCE * torch.randn(x.shape, generator=generator)),), {}

    handles = [layer.register_forward_pre_hook(disturb, with_kwargs=True) for layer in layers]
    try:
        disturbed = model.outputs(batch)[0]
    finally:
        for handle in handles:
            handle.remove()
    own = float((disturbed - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float32).tiny))
    return max(QUANTIZED_TOLERANCE, DISTURBANCE_FACTOR * own)
