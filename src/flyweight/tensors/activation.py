"""Quantization of activations: with ranges fixed by calibration, or found at run time.

Both compute exactly what ONNX's QuantizeLinear and DynamicQuantizeLinear compute, so that the PyTorch
reference and the exported file round the same values in the same way. Gradients pass straight through the
rounding.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

ActivationGranularity = Literal["tensor", "token"]
UINT8_HIGHEST = 255
# Symmetric codes kept unsigned: the integer kernels are fastest on u8 activations and s8 weights.
TOKEN_ZERO_POINT = 128
TOKEN_HIGHEST = 127


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` forward, the gradient of ``exact`` backward (Bengio et al. 2013, arXiv:1308.3432)."""
    return exact + (rounded - exact).detach() if exact.requires_grad else rounded


@final
class StaticQuantizer(nn.Module):
    """Rounds a tensor to uint8 codes with one fixed scale and zero point.

    Args:
        scale: Above 0.
        zero_point: In 0..255.

    Raises:
        ValueError: One is out of range.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        if not 0 <= zero_point <= UINT8_HIGHEST:
            raise ValueError(f"zero_point must be in 0..255, got {zero_point}")
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """``x`` as the codes represent it."""
        zero_point = self.zero_point.float()
        codes = ((x / self.scale).round() + zero_point).clamp(0, UINT8_HIGHEST)
        return straight_through(x, (codes - zero_point) * self.scale)


@final
class ChannelQuantizer(nn.Module):
    """Pads a network's input with zeros, rounds each channel on its own grid, and gives the codes as floats.

    Args:
        scale: (channels,), above 0.
        zero_point: (channels,) uint8, the code of the value 0.
        padding: (left, right, top, bottom), in pixels.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero_point", zero_point)
        self.padding = padding

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels _ _"]:
        """Codes in 0..255."""
        padded = nn.functional.pad(x, self.padding)
        scale, zero_point = (v.reshape(1, -1, 1, 1) for v in (self.scale, self.zero_point.float()))
        values = padded / scale
        return straight_through(values, values.round() + zero_point).clamp(0, UINT8_HIGHEST)


@final
class DynamicQuantizer(nn.Module):
    """Rounds a tensor to uint8 codes with ranges taken from the tensor itself.

    By ``tensor``: one asymmetric range for all, as ONNX's DynamicQuantizeLinear. By ``token``: one symmetric
    range for each vector along the last axis; outlier tokens then do not coarsen the others.
    """

    def __init__(self, granularity: ActivationGranularity) -> None:
        super().__init__()
        self.granularity: ActivationGranularity = granularity

    def forward(self, x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
        """``x`` as the codes represent it."""
        if self.granularity == "token":
            scale = _token_scale(x.detach())
            codes = ((x / scale).round() + TOKEN_ZERO_POINT).clamp(0, UINT8_HIGHEST)
            return straight_through(x, (codes - TOKEN_ZERO_POINT) * scale)
        low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
        scale = (high - low) / UINT8_HIGHEST
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero_point = (-low / scale).round().clamp(0, UINT8_HIGHEST)
        codes = ((x / scale).round() + zero_point).clamp(0, UINT8_HIGHEST)
        return straight_through(x, (codes - zero_point) * scale)


def ranges_span_batch(module: nn.Module) -> bool:
    """Whether a range found at run time is taken over all examples of a call, so that they interact."""
    return any(isinstance(m, DynamicQuantizer) and m.granularity == "tensor" for m in module.modules())


def _token_scale(x: Float[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    tiny = torch.finfo(torch.float32).tiny
    return (x.abs().amax(-1, keepdim=True) / TOKEN_HIGHEST).clamp_min(tiny)
