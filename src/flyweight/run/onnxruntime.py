"""ONNX files on the CPU with ONNX Runtime."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np

from flyweight.core.report import Artifact
from flyweight.errors import ArtifactError, InputError
from flyweight.run.inputs import thread_count
from flyweight.run.manifest import ANY_SIZE, TensorSpec
from flyweight.run.session import CheckedSession, artifact_for

if TYPE_CHECKING:
    from types import ModuleType

    from flyweight.model import Model

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_FATAL = 4  # log severity: errors come as exceptions, which carry the same text
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_DTYPES = {"tensor(float16)": "float16", "tensor(float)": "float32", "tensor(double)": "float64"}


@final
class OnnxRuntime:
    """Runs an artifact's ONNX file with all graph optimizations, in order, on the CPU alone."""

    name = "onnxruntime"
    formats = ("onnx",)

    def load(self, source: Artifact | Model, threads: int) -> CheckedSession:
        """A session of the artifact's model file.

        Args:
            source: An artifact of format ``"onnx"``.
            threads: Threads inside one operator; 0 is one for each core this process may use.

        Raises:
            ArtifactError: The file is damaged, or reads weights from outside its folder.
            TypeError: ``source`` is not an artifact.
        """
        path = artifact_for(self.name, source).model_path
        try:
            session = onnxruntime_module().InferenceSession(
                str(path), _options(thread_count(threads)), providers=["CPUExecutionProvider"]
            )
        except _errors() as error:
            raise ArtifactError(f"ONNX Runtime cannot load {path}: {_sentence(error)}") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        return CheckedSession(map(_spec, inputs), map(_spec, outputs), partial(_computed, session))


def onnxruntime_module() -> ModuleType:
    """The package, imported so that it does not tell its maker: since 1.29 it would on every system."""
    os.environ.setdefault(NO_TELEMETRY, "1")  # looked at once, when the library is loaded
    module = importlib.import_module("onnxruntime")
    module.disable_telemetry_events()
    return module


def _computed(session: Any, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        outputs: list[np.ndarray] = session.run(None, dict(arrays))
    except _errors() as error:
        raise InputError(f"ONNX Runtime cannot run the model on these inputs: {_sentence(error)}") from error
    return outputs


def _options(threads: int) -> Any:
    onnxruntime = onnxruntime_module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    # Idle threads would go on spinning and slow the other session of an interleaved comparison.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int | str) and size != "" else ANY_SIZE for size in value.shape)
    try:
        return TensorSpec(value.name, _DTYPES.get(value.type, value.type[len("tensor(") : -1]), shape)
    except ValueError as error:
        raise ArtifactError(
            f"ONNX Runtime gives no arrays for {value.name!r} of type {value.type}"
        ) from error


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes without a common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.EngineError,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


def _sentence(error: Exception) -> str:
    return " ".join(_PREFIX.sub("", str(error)).split())[:300]
