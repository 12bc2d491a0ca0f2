"""The encoder of affine weights: on ranges set anew from each weight, or on a grid that is fixed or learned.

Source: Esser et al. 2020, arXiv:1902.08153, section 2 (step sizes learned by gradient); Bhalgat et al. 2020,
arXiv:2004.09576, section 3 (and zero points).
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flyweight.tensors.activation import straight_through
from flyweight.tensors.affine import AffineForm, AffineWeight, encode_affine, encode_on_grid, over_columns
from flyweight.tensors.encoded import EncodedWeight


@final
class AffineEncoder(nn.Module):
    """Rounds a weight to nearest, keeping the mask of the stage before.

    Args:
        form: What to store.
        scale: (1 or rows, groups), above 0: the grid to round to. None sets ranges anew from each weight.
        zero_point: As ``scale``, whole numbers; None when symmetric, or with ``scale`` None.
        mask: Of the weight's shape, False where a weight is removed; None leaves it to the stage before.
        least_scale: As for `encode_affine`; for ranges set anew.
        half_scales: Likewise.
    """

    scale: Tensor | None
    zero_point: Tensor | None
    mask: Tensor | None
    least_scale: Tensor | None

    def __init__(
        self,
        form: AffineForm,
        *,
        scale: Float[Tensor, "_ groups"] | None = None,
        zero_point: Tensor | None = None,
        mask: Bool[Tensor, " *shape"] | None = None,
        least_scale: Float[Tensor, " rows"] | None = None,
        half_scales: bool = False,
    ) -> None:
        super().__init__()
        if scale is not None and form.symmetric != (zero_point is None):
            raise ValueError("a zero_point is needed where the form is asymmetric, and only there")
        self.form = form
        self.half_scales = half_scales
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", None if zero_point is None else zero_point.float())
        self.register_buffer("mask", mask)
        self.register_buffer("least_scale", least_scale)

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> AffineWeight:
        """The weight as it is stored."""
        mask = self._mask(before)
        if self.scale is None:
            return encode_affine(
                weight, self.form, mask, least_scale=self.least_scale, half_scales=self.half_scales
            )
        zero = None if self.zero_point is None else self._whole_zero_point().to(self.form.dtype)
        return encode_on_grid(weight, self.form, self._positive_scale().detach(), zero, mask)

    def keep_grid(self, weight: Tensor, before: EncodedWeight | None = None) -> AffineEncoder:
        """The encoder with the grid that ``weight`` is put on, whatever the next weight is."""
        stored = self(weight, before)
        return AffineEncoder(self.form, scale=stored.scale, zero_point=stored.zero_point)

    def learn_grid(self, weight: Tensor, before: EncodedWeight | None = None) -> tuple[nn.Parameter, ...]:
        """Make the scales, and zero points if there are any, parameters, and return them.

        They start where they are, or where ``weight`` puts them.
        """
        stored = self(weight, before)
        del self.scale
        self.scale = nn.Parameter(stored.scale.clone())
        if stored.zero_point is None:
            return (self.scale,)
        del self.zero_point
        self.zero_point = nn.Parameter(stored.zero_point.float())
        return self.scale, self.zero_point

    def projected(
        self, weight: Float[Tensor, " *shape"], before: EncodedWeight | None = None
    ) -> Float[Tensor, " *shape"]:
        """The decoded weight, with gradients to the weight and to the grid where it is learned."""
        if not isinstance(self.scale, nn.Parameter):
            return straight_through(weight, self(weight, before).decode().to(weight.dtype))
        matrix = weight.reshape(weight.shape[0], -1)
        columns, grid = matrix.shape[1], self.form.grid
        damping = 1 / math.sqrt(weight.numel() / self.scale.numel() * grid.highest)
        scale = over_columns(_gently(self._positive_scale(), damping), self.form, columns)
        zero = torch.zeros(())
        if self.zero_point is not None:
            zero = over_columns(_gently(self._whole_zero_point(), damping), self.form, columns)
        steps = torch.clamp(matrix / scale, grid.lowest - zero, grid.highest - zero)
        decoded = _round(steps) * scale
        mask = self._mask(before)
        if mask is not None:
            decoded = decoded * mask.reshape(matrix.shape)
        return decoded.reshape(weight.shape)

    def _mask(self, before: EncodedWeight | None) -> Tensor | None:
        return self.mask if self.mask is not None or before is None else before.mask

    def _positive_scale(self) -> Tensor:
        if self.scale is None:
            raise ValueError("the encoder has no grid")
        return self.scale.clamp_min(torch.finfo(torch.float32).tiny)

    def _whole_zero_point(self) -> Tensor:
        if self.zero_point is None:
            raise ValueError("the encoder has no zero point")
        return _round(self.zero_point.clamp(self.form.grid.lowest, self.form.grid.highest))


def _round(values: Tensor) -> Tensor:
    return straight_through(values, values.round())


def _gently(values: Tensor, damping: float) -> Tensor:
    """The same values with a smaller gradient: one step size gathers those of many weights."""
    return (values * damping) + (values * (1 - damping)).detach()
