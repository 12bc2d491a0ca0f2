"""Rounding of activations while a model is trained: the step may be learned, and values out of range clip.

Computes what `flyweight.tensors.activation.StaticQuantizer` computes, in fewer passes over the values.

Source: Esser et al. 2020, arXiv:1902.08153, section 2.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flyweight.tensors.activation import StaticQuantizer, highest_code


@final
class TrainedStep(nn.Module):
    """A static quantizer while a model is trained.

    Args:
        quantizer: What it stands for; left as it is.
        learned: Whether its step is a parameter.
    """

    scale: Tensor

    def __init__(self, quantizer: StaticQuantizer, *, learned: bool) -> None:
        super().__init__()
        self.bits = quantizer.bits
        self.zero_point = int(quantizer.zero_point)
        start = quantizer.scale.detach().clone()
        if learned:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)

    def forward(self, x: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
        """``x`` as the codes represent it."""
        rounded: Tensor = _Round.apply(x, self._positive_scale(), self.zero_point, self.bits)  # type: ignore[no-untyped-call]
        return rounded

    def fixed(self) -> StaticQuantizer:
        """The quantizer with the step as it is now."""
        return StaticQuantizer(float(self._positive_scale().detach()), self.zero_point, self.bits)

    def _positive_scale(self) -> Tensor:
        return self.scale.clamp_min(torch.finfo(torch.float32).tiny)


@final
class _Round(torch.autograd.Function):
    """Rounds; the gradient of the step is that of the source, of values that of a clamp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, bits: int) -> Tensor:
        step = scale.to(x.dtype)
        ctx.limits = (-zero_point, highest_code(bits) - zero_point)
        rounded = (x / step).round_().clamp_(*ctx.limits).mul_(step)
        ctx.save_for_backward(x, scale, rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, rounded = ctx.saved_tensors
        low, high = ctx.limits
        step = float(scale)
        of_values = torch.ops.aten.hardtanh_backward(gradient, x, low * step, high * step)
        if not ctx.needs_input_grad[1]:
            return of_values, None, None, None
        # The source's sum of codes, less steps where nothing is clipped, in terms of what is at hand.
        of_scale = (_dot(gradient, rounded) - _dot(of_values, x)) / step
        # one step gathers the gradients of all values of an example
        damping = 1 / math.sqrt(max(x[0].numel(), 1) * max(high - low, 1))
        return of_values, (of_scale * damping).to(scale.dtype), None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float32)
