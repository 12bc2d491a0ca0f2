"""The sum that a layer's output goes into: a residual stream, whose other summand may be off already.

A layer that is quantized last can make up for the error of the summand beside it, as far as what it reads
tells of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.measure.graph import ATEN, BATCH_NORMS, module_of

_SUMS = frozenset({ATEN.add.Tensor, ATEN.add_.Tensor})
_DROPOUTS = frozenset({ATEN.dropout.default, ATEN.dropout_.default})
LEAST_SCALE = 1e-3  # of the largest: a channel that a batch norm all but takes away makes up for nothing


@final
@dataclass(frozen=True, eq=False)
class OtherSummand:
    """What is added to a layer's output.

    Attributes:
        node: What computes it.
        scale: By which the output's channels are multiplied before, from batch norms; None where by nothing.
    """

    node: fx.Node
    scale: Float[Tensor, " channels"] | None

    def lacking(
        self, float_values: Mapping[fx.Node, Sequence[Any]], values: Mapping[fx.Node, Sequence[Any]]
    ) -> Sequence[Tensor] | None:
        """Batch by batch, what the layer's output has to have more than the float model's.

        Args:
            float_values: Of the float model.
            values: Of the quantized one.

        Returns:
            Computed as they are read, of the shape of the output; None where the summand is not known yet,
            or is what it is in the float model.
        """
        known = self.node in values and values[self.node] is not float_values[self.node]
        return _Lacking(float_values[self.node], values[self.node], self.scale) if known else None


def other_summand(graph: fx.GraphModule, node: fx.Node) -> OtherSummand | None:
    """The summand beside the output of ``node``; None where that is read elsewhere, or goes into no sum."""
    at, scale = node, None
    while len(at.users) == 1:
        (after,) = at.users
        if after.target in _SUMS:
            other = next((value for value in after.args if value is not at), None)
            scaled = bool(after.kwargs)  # alpha
            return OtherSummand(other, scale) if isinstance(other, fx.Node) and not scaled else None
        module = module_of(graph, after)
        if isinstance(module, BATCH_NORMS):
            if module.training or module.running_var is None:
                return None
            scale = _scale_of(module) * (1 if scale is None else scale)
        elif module is not None or after.target not in _DROPOUTS or after.args[2]:
            return None
        at = after
    return None


def _scale_of(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else norm.weight.detach() * scale


@final
class _Lacking(Sequence[Any]):
    def __init__(self, wanted: Sequence[Any], got: Sequence[Any], scale: Tensor | None) -> None:
        self._wanted, self._got = wanted, got
        self._inverse: Tensor | None = None
        if scale is not None:
            small = scale.abs() <= LEAST_SCALE * scale.abs().max()
            self._inverse = torch.where(small, 0.0, 1 / scale)

    def __len__(self) -> int:
        return len(self._got)

    def __getitem__(self, index: Any) -> Any:
        difference = self._wanted[index] - self._got[index]
        if self._inverse is None:
            return difference
        return difference * self._inverse.reshape(-1, *[1] * (difference.dim() - 2))
