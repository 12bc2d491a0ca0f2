"""Weights rounded by ONNX Runtime's k-quant, in an environment of its own: ``python FILE job arrays result``.

The job names ``bits``, a ``group_size`` and a file ``out``; the arrays are weights, (rows, columns), by name.
The result holds ``file`` (the rounded weights by the same names, npz, decoded), ``seconds`` and ``versions``.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from onnxruntime.quantization.neural_compressor.weight_only import (  # noqa: TID253  # this file is the rival
    quant_tensor_k_quant_cpu,
)


def main(job_file: str, arrays_file: str, result_file: str) -> None:
    """Write the rounded weights, and the result file."""
    job = json.loads(Path(job_file).read_text())
    with np.load(arrays_file, allow_pickle=False) as stored:
        weights = dict(stored)
    start = time.perf_counter()
    rounded = {name: _rounded(weight, job["bits"], job["group_size"]) for name, weight in weights.items()}
    seconds = time.perf_counter() - start
    np.savez(job["out"], **rounded)  # type: ignore[arg-type]  # the stub mistakes them for its allow_pickle
    answer = {
        "file": job["out"],
        "seconds": seconds,
        "versions": {"onnxruntime": version("onnxruntime")},
    }
    Path(result_file).write_text(json.dumps(answer))


def _rounded(weight: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    codes, scale, zero_point = quant_tensor_k_quant_cpu(weight, bits, group_size)
    decoded: np.ndarray = ((codes - zero_point) * scale).astype(np.float32).reshape(weight.shape)
    return decoded


if __name__ == "__main__":
    main(*sys.argv[1:])
