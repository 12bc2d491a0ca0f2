"""A model in the one form every technique works on: a PyTorch module with named example inputs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from flyweight.errors import InputError

if TYPE_CHECKING:
    from flyweight.data.preprocessing import Preprocessing


@final
@dataclass
class Model:
    """``module`` in eval mode and inputs it accepts.

    Techniques change ``module`` in place, or replace it, on a copy made by `clone`.

    Attributes:
        name: Short name, used in plans and reports.
        module: Called with ``example_inputs`` as keyword arguments.
        example_inputs: Input name to a tensor with batch 1 on axis 0.
        dynamic_axes: Input name to {axis: name of the dimension}; axis 0 is always ``"batch"``.
        preprocessing: Raw examples to input arrays; shipped with the artifact. None where the caller does it.
        typical_inputs: A few real examples in one batch, for what must be measured while a file is written;
            None are the example inputs.
    """

    name: str
    module: nn.Module
    example_inputs: Mapping[str, Tensor]
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    typical_inputs: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        self.module.eval()
        axes = {name: {0: "batch", **self.dynamic_axes.get(name, {})} for name in self.example_inputs}
        self.dynamic_axes = axes

    def clone(self) -> Model:
        """A deep copy of the module; everything else is shared."""
        return replace(self, module=copied(self.module))

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """The module's outputs on ``inputs`` (default: the example inputs), as a tuple.

        The module is given copies: one that changes them in place changes nothing else.

        Raises:
            InputError: The module does not take these inputs, or returns something else than tensors.
        """
        given = self.example_inputs if inputs is None else inputs
        return tensors_of(self.module(**{name: x.clone() for name, x in given.items()}), self.name)

    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the outputs on the example inputs."""
        return [tuple(t.shape) for t in self.outputs()]


def copied(module: nn.Module) -> nn.Module:
    """A deep copy; without the warning that torch's own graph modules give about torch's own deprecations.

    Tensors that a module keeps and computed with gradients, as old-style weight norm does, become values.
    """
    kept = [t for m in module.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    values = {id(t): t.detach().clone() for t in kept}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
        return copy.deepcopy(module, values)


def tensors_of(returned: object, model: str) -> tuple[Tensor, ...]:
    """What a module returned, as a tuple of tensors.

    Raises:
        InputError: It holds something else than tensors.
    """
    if isinstance(returned, Tensor):
        return (returned,)
    values = tuple(returned.values()) if isinstance(returned, Mapping) else returned
    if isinstance(values, tuple | list) and values and all(isinstance(v, Tensor) for v in values):
        return tuple(values)
    raise InputError(
        f"model {model!r} returns {type(returned).__name__}; it must return a tensor or a tuple of tensors"
    )
