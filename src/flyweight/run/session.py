"""What the sessions of all our runtimes are: a check of the arrays, then the runtime's own call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, final

import numpy as np

from flyweight.core.report import Artifact
from flyweight.run.inputs import InputCheck
from flyweight.run.manifest import TensorSpec

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class CheckedSession:
    """Called with named arrays, returns the list of outputs.

    Attributes:
        inputs: All are needed, no others are taken; in the model's order.
        outputs: In the model's order; () where the runtime does not tell.
    """

    def __init__(
        self,
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        compute: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]],
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._check, self._compute = InputCheck(self.inputs), compute

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of ``inputs``."""
        return tuple(spec.name for spec in self.inputs)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, each (batch, ...).

        Raises:
            InputError: The arrays are not what the model takes: names, dtypes, shapes, or values.
        """
        self._check(arrays)
        return self._compute(arrays)


def artifact_for(runtime: str, source: Artifact | Model) -> Artifact:
    """``source``, which has to be an artifact.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(source, Artifact):
        raise TypeError(f"{runtime} loads artifacts, got {type(source).__name__}")
    return source
