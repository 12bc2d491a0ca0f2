"""Grids of quantized layers that are kept: what is stored stays, whatever encoder chose it.

Factors of rows move into the scales of their codes, and the codes stay. A negative factor turns the signs of
the codes, or, around another zero point, reverses their order.

Source: Nagel et al. 2021, arXiv:2106.08295, section 5.2.1 (factors left to the scales of channels).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.binary import BinaryEncoder, BinaryWeight
from flyweight.tensors.codebook import CodebookEncoder, CodebookWeight
from flyweight.tensors.encoded import EncodedLayer, EncodedWeight, Encoder
from flyweight.tensors.plain import PlainWeight


def with_factors(stored: EncodedWeight, factors: Float[Tensor, " rows"]) -> EncodedWeight:
    """The encoding of ``factors[:, None] * weight`` with the same codes, but for their signs.

    Args:
        stored: By row or group.
        factors: None of them 0.

    Raises:
        TypeError: The form has no scale a row.
    """
    column, sign = factors.abs()[:, None], torch.where(factors < 0, -1, 1)[:, None]
    if isinstance(stored, AffineWeight) and stored.form.granularity != "tensor":
        if stored.zero_point is None:
            codes, zero = stored.codes * sign.to(stored.codes.dtype), None
        else:
            ends = stored.form.grid.lowest + stored.form.grid.highest
            codes = torch.where(sign < 0, ends - stored.codes, stored.codes)
            zero = torch.where(sign < 0, ends - stored.zero_point, stored.zero_point)
        return replace(stored, codes=codes, zero_point=zero, scale=stored.scale * column)
    if isinstance(stored, BinaryWeight) and stored.form.scaled:
        signs = stored.signs * sign.to(stored.signs.dtype)
        return replace(stored, signs=signs, scale=stored.scale * column)
    if isinstance(stored, CodebookWeight) and stored.form.granularity == "channel":
        last = stored.table.shape[1] - 1  # tables stay in ascending order
        codes = torch.where(sign < 0, last - stored.codes, stored.codes).to(stored.codes.dtype)
        table = torch.where(sign < 0, stored.table.flip(1), stored.table) * factors[:, None]
        return replace(stored, codes=codes, table=table)
    if isinstance(stored, PlainWeight):
        return PlainWeight(stored.weight * factors.reshape(-1, *[1] * (stored.weight.dim() - 1)))
    raise TypeError(f"{type(stored).__name__} of this form has no scale a row")


@torch.no_grad()
def keep(layer: EncodedLayer, stored: EncodedWeight) -> None:
    """Give the layer an encoder that keeps its grid, and a weight that it encodes to ``stored``, in place.

    Weights that are encoded to it already stay as they are; the layer is thawed.
    """
    if isinstance(stored, AffineWeight):
        stored = _storable(stored, layer.encoders[-1])
        mask = None if stored.mask is None else stored.mask.reshape(stored.shape)
        replace_last(
            layer,
            AffineEncoder(stored.form, scale=stored.scale, zero_point=stored.zero_point, mask=mask),
        )
    elif isinstance(stored, BinaryWeight) and stored.form.scaled:
        encoder = BinaryEncoder(stored.form)
        encoder.scale = stored.scale
        replace_last(layer, encoder)
    elif isinstance(stored, CodebookWeight):
        replace_last(layer, CodebookEncoder(stored.form, stored.table))
    layer.frozen = None
    weight, wanted = layer.layer.weight, stored.decode()
    moved = layer.encoding().decode() != wanted
    weight.copy_(torch.where(moved, wanted.to(weight.dtype), weight))


@torch.no_grad()
def multiply_rows(layer: EncodedLayer, factors: Float[Tensor, " rows"]) -> None:
    """Multiply the rows of a layer's weight, and what is stored of it, in place; the layer is thawed."""
    stored, weight = with_factors(layer.encoding(), factors), layer.layer.weight
    weight.copy_(weight * factors.reshape(-1, *[1] * (weight.dim() - 1)))
    keep(layer, stored)


def replace_last(layer: EncodedLayer, encoder: Encoder) -> None:
    """Exchange a layer's last encoder, in place."""
    layer.encoders = layer.encoders[:-1]
    layer.add_encoder(encoder)


def _storable(stored: AffineWeight, encoder: Encoder) -> AffineWeight:
    """With scales as the encoder that there was is to make them."""
    half = torch.finfo(torch.float16)
    if not isinstance(encoder, AffineEncoder) or not encoder.half_scales:
        return stored
    if float(stored.scale.min()) < half.tiny or float(stored.scale.max()) > half.max:
        return stored
    return replace(stored, scale=stored.scale.half().float())
