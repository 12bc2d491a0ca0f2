"""ONNX Runtime's own quantization, run in an environment of its own: ``python FILE job arrays result``.

The job names a float ONNX ``model``, a folder ``out`` and ``variants``, each with a ``name`` and either
``{"mode": "static", "calibrator": "MinMax", "percentile": 99.99, "format": "QDQ"}``,
``{"mode": "dynamic", "per_channel": true}`` or ``{"mode": "blocks", "bits": 4, "block_size": 32,
"accuracy_level": 4, "operators": ["MatMul", "Gather"]}``. The result holds ``files`` (name to path),
``seconds`` and ``versions``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import (  # noqa: TID253  # this file is the rival
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: TID253

BATCH = 32


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # its base is untyped
    """Calibration inputs in batches, in order."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        examples = len(next(iter(arrays.values())))
        self._batches = iter(
            [{k: v[i : i + BATCH] for k, v in arrays.items()} for i in range(0, examples, BATCH)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        return next(self._batches, None)


def main(job_file: str, arrays_file: str, result_file: str) -> None:
    """Write every variant the job asks for, and the result file."""
    job = json.loads(Path(job_file).read_text())
    with np.load(arrays_file, allow_pickle=False) as stored:
        arrays = dict(stored)
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    prepared = _prepare(Path(job["model"]), out, symbolic=any(v["mode"] == "static" for v in job["variants"]))
    files, seconds = {}, {}
    for variant in job["variants"]:
        start = time.perf_counter()
        file = out / f"{variant['name']}.onnx"
        if variant["mode"] == "static":
            _static(prepared, file, variant, arrays)
        elif variant["mode"] == "dynamic":
            quantize_dynamic(prepared, file, per_channel=variant["per_channel"], weight_type=QuantType.QInt8)
        else:
            _blocks(prepared, file, variant)
        files[variant["name"]], seconds[variant["name"]] = str(file), time.perf_counter() - start
    versions = {name: version(name) for name in ("onnxruntime", "onnx")}
    Path(result_file).write_text(json.dumps({"files": files, "seconds": seconds, "versions": versions}))


def _prepare(model: Path, out: Path, *, symbolic: bool) -> Path:
    """The model as ONNX Runtime's guide asks for it: optimized, shapes inferred.

    Symbolic shape inference fails on transformers with two dynamic axes; dynamic quantization does without.
    """
    prepared = out / "prepared.onnx"
    quant_pre_process(model, prepared, skip_symbolic_shape=not symbolic)
    return prepared


def _static(model: Path, file: Path, variant: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    percentile = variant.get("percentile")
    quantize_static(
        model,
        file,
        _Batches(arrays),
        quant_format=QuantFormat[variant["format"]],
        calibrate_method=CalibrationMethod[variant["calibrator"]],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={} if percentile is None else {"CalibPercentile": percentile},
    )


def _blocks(model: Path, file: Path, variant: Mapping[str, Any]) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        str(model),
        bits=variant["bits"],
        block_size=variant["block_size"],
        is_symmetric=True,
        accuracy_level=variant["accuracy_level"],
        op_types_to_quantize=tuple(variant["operators"]),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
