"""ONNX files on the CPU with OpenVINO.

Limits: an index out of range in a Gather gives zeros where ONNX Runtime raises.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np

from flyweight._optional import require
from flyweight.core.report import Artifact
from flyweight.errors import ArtifactError, InputError
from flyweight.run.inputs import thread_count
from flyweight.run.manifest import ANY_SIZE, TensorSpec
from flyweight.run.session import CheckedSession, artifact_for

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from flyweight.model import Model

_TELEMETRY = "openvino_telemetry"


@final
class OpenVinoRuntime:
    """Runs an artifact's ONNX file in float32 where it is float, tuned for the latency of one call."""

    name = "openvino"
    formats = ("onnx",)

    def load(self, source: Artifact | Model, threads: int) -> CheckedSession:
        """A session of the artifact's model file.

        Args:
            source: An artifact of format ``"onnx"``.
            threads: Threads of one call; 0 is one for each core this process may use.

        Raises:
            ArtifactError: The file is damaged, or reads weights from outside its folder.
            MissingDependency: OpenVINO is not installed.
            TypeError: ``source`` is not an artifact.
        """
        path = artifact_for(self.name, source).model_path
        openvino = openvino_module()
        try:
            compiled = _compiled(openvino, path, thread_count(threads))
            return CheckedSession(
                map(_spec, compiled.inputs),
                map(_spec, compiled.outputs),
                partial(_computed, compiled.create_infer_request(), compiled.outputs),
            )
        except _errors(openvino) as error:
            raise ArtifactError(f"OpenVINO cannot load {path}: {_sentence(error)}") from error


def _compiled(openvino: ModuleType, path: Path, threads: int) -> Any:
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 on processors that have it
    }
    # The front end by name: a file that is not ONNX would be offered to those of all other formats.
    reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    graph = reader.convert(reader.load(str(path)))
    if not graph.outputs:
        raise ArtifactError(f"OpenVINO cannot load {path}: it holds no graph")
    return openvino.Core().compile_model(graph, "CPU", settings)


def _computed(request: Any, ports: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    shared = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        outputs = request.infer(shared, share_inputs=True)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot run the model on these inputs: {_sentence(error)}") from error
    return [outputs[port] for port in ports]


def openvino_module() -> ModuleType:
    """The package, imported so that it does not tell its maker.

    Raises:
        MissingDependency: It is not installed.
    """
    with _without_telemetry():
        return require("openvino", extra="openvino", purpose="running models with OpenVINO")


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """OpenVINO reports its import over the network unless its telemetry package cannot be imported."""
    if _TELEMETRY in sys.modules:  # imported by someone else, who decides
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # how Python marks a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


def _spec(port: Any) -> TensorSpec:
    shape = tuple(size.get_length() if size.is_static else ANY_SIZE for size in port.partial_shape)
    return TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()).name, shape)


def _errors(openvino: ModuleType) -> tuple[type[Exception], ...]:
    """What OpenVINO raises while it reads and compiles."""
    frontend = openvino.frontend
    return (
        RuntimeError,
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )


def _sentence(error: Exception) -> str:
    """Its last line: those before say where in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
