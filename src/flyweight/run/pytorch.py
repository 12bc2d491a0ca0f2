"""Modules in PyTorch itself: the reference that files are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import final

import numpy as np
import torch

from flyweight.core.report import Artifact
from flyweight.errors import InputError
from flyweight.model import Model, tensors_of
from flyweight.run.inputs import thread_count
from flyweight.run.manifest import TensorSpec
from flyweight.run.session import CheckedSession


@final
class PyTorchRuntime:
    """Runs a model's module as it is, without gradients."""

    name = "pytorch"
    formats = ("module",)

    def load(self, source: Artifact | Model, threads: int) -> CheckedSession:
        """A session of the model; it shares the module, so later changes to that are seen.

        Args:
            source: A model.
            threads: Threads inside one operator; 0 is one for each core this process may use.

        Raises:
            TypeError: ``source`` is not a model.
        """
        if not isinstance(source, Model):
            raise TypeError(f"pytorch loads models, got {type(source).__name__}")
        return CheckedSession(input_specs(source), (), partial(_computed, source, thread_count(threads)))


def _computed(model: Model, threads: int, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    tensors = {name: torch.from_numpy(_owned(array)) for name, array in arrays.items()}
    with torch.inference_mode(), _torch_threads(threads):
        try:
            returned = model.module(**tensors)
        except (RuntimeError, IndexError) as error:
            text = " ".join(str(error).split())[:300]
            raise InputError(f"model {model.name!r} cannot run on these inputs: {text}") from error
    return [tensor.numpy() for tensor in tensors_of(returned, model.name)]


def input_specs(model: Model) -> tuple[TensorSpec, ...]:
    """What the model takes, after its example inputs and dynamic axes."""
    return tuple(
        _spec(name, tensor, model.dynamic_axes[name]) for name, tensor in model.example_inputs.items()
    )


def _spec(name: str, example: torch.Tensor, dynamic: Mapping[int, str]) -> TensorSpec:
    shape = tuple(dynamic.get(axis, size) for axis, size in enumerate(example.shape))
    return TensorSpec(name, str(example.dtype).removeprefix("torch."), shape)


def _owned(array: np.ndarray) -> np.ndarray:
    """The array in a form PyTorch can share: writable, strides from 0; a copy only where it is not."""
    return np.require(array, requirements=["C", "W"])


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """PyTorch's thread count belongs to the process: it is set for one call and put back."""
    before = torch.get_num_threads()
    if before == threads:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
