"""Checks an exported file against the PyTorch reference, at two batch sizes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from flyweight.core.report import Artifact, Parity
from flyweight.evaluate.parity import parity
from flyweight.model import Model
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.run.pytorch import PyTorchRuntime
from flyweight.tensors.encoded import encoded_layers

FLOAT_TOLERANCE = 1e-3
# Integer kernels multiply sums by rounded scales: now and then a value lands on the neighbouring code, and
# the layers after it carry that on. Measured: 0.003 to 0.011 on CNNs of 20 to 56 layers, below 0.01 on 4-bit
# MatMulNBits.
QUANTIZED_TOLERANCE = 0.05
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
    quantized = next(encoded_layers(model.module), None) is not None
    tolerance = QUANTIZED_TOLERANCE if quantized else FLOAT_TOLERANCE
    return parity(expected, found, shapes, tolerance=tolerance)
