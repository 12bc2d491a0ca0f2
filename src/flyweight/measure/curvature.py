"""Second moments of what a layer reads: the curvature of its squared output error.

Source: Frantar and Alistarh 2022, arXiv:2208.11580 (layer-wise Hessian); Li et al. 2025, arXiv:2504.02692
(GPTAQ: the float inputs beside those of the quantized model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.tensors.encoded import Layer

UNFOLDED = 2**25  # numbers held at a time while a convolution's inputs are unfolded


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Of the inputs of one layer, in parts: the groups of a convolution, else one.

    Attributes:
        own: Sum of ``x x^T`` over everything read in the quantized model, float64.
        cross: Sum of ``y x^T``, with ``y`` what the float model reads at the same places.
        mean: Of ``x``.
        float_mean: Of ``y``.
        count: Places.
        lacking: Sum of ``d x^T``, with ``d`` what the output has to have more than the float layer's; None
            where it is nothing.
        lacking_mean: Of ``d``.
    """

    own: Float[Tensor, "parts columns columns"]
    cross: Float[Tensor, "parts columns columns"]
    mean: Float[Tensor, "parts columns"]
    float_mean: Float[Tensor, "parts columns"]
    count: int
    lacking: Float[Tensor, "parts rows columns"] | None = None
    lacking_mean: Float[Tensor, "parts rows"] | None = None

    def centred(self) -> Moments:
        """Those of the differences from the means: all that weights see where a bias takes the means."""
        own = self.own - self.count * self.mean[:, :, None] * self.mean[:, None]
        cross = self.cross - self.count * self.float_mean[:, :, None] * self.mean[:, None]
        nothing = torch.zeros_like(self.mean)
        lacking, mean = self.lacking, self.lacking_mean
        if lacking is None or mean is None:
            return Moments(own, cross, nothing, nothing, self.count)
        lacking = lacking - self.count * mean[:, :, None] * self.mean[:, None]
        return Moments(own, cross, nothing, nothing, self.count, lacking, torch.zeros_like(mean))


def moments(
    layer: Layer,
    inputs: Sequence[Tensor],
    float_inputs: Sequence[Tensor],
    keep: Sequence[Tensor | None] | None = None,
    lacking: Sequence[Tensor] | None = None,
) -> Moments:
    """Moments of a linear or convolutional layer.

    Args:
        layer: Not an embedding.
        inputs: What it reads in the quantized model, batch by batch.
        float_inputs: What it reads in the float model; the same tensors where nothing before is quantized.
        keep: For each batch, (batch, tokens) bool: the tokens that count, where a linear layer reads tokens.
        lacking: For each batch, of the output's shape, see `flyweight.measure.walk.Seen`.

    Raises:
        ValueError: An input is not finite.
    """
    parts: int = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    columns: int = layer.weight[0].numel()
    own = torch.zeros(parts, columns, columns, dtype=torch.float64)
    cross = torch.zeros_like(own)
    total, float_total, count = own[:, 0].clone(), own[:, 0].clone(), 0
    rows: int = layer.weight.shape[0] // parts
    gaps = None if lacking is None else torch.zeros(parts, rows, columns, dtype=torch.float64)
    gap_total = torch.zeros(parts, rows, dtype=torch.float64)
    for index, (x, y) in enumerate(zip(inputs, float_inputs, strict=True)):
        kept, first = None if keep is None else keep[index], 0
        missing = None if lacking is None else lacking[index].float()
        for read, wanted in zip(_pieces(layer, x), _pieces(layer, y), strict=True):
            vectors = as_rows(layer, read, kept)
            wanted_vectors = vectors if x is y else as_rows(layer, wanted, kept)
            product = (vectors.transpose(1, 2) @ vectors).double()
            own += product
            cross += product if x is y else (wanted_vectors.transpose(1, 2) @ vectors).double()
            total += vectors.sum(1)
            float_total += wanted_vectors.sum(1)
            count += vectors.shape[1]
            if missing is not None and gaps is not None:
                gap = as_output_rows(layer, missing[first : first + len(read)], kept)
                gaps += (gap.transpose(1, 2) @ vectors).double()
                gap_total += gap.sum(1)
            first += len(read)
    if not bool(torch.isfinite(own).all() and torch.isfinite(gap_total).all()):
        raise ValueError("reads NaN or infinite values on calibration data")
    places = max(count, 1)
    gap_mean = None if gaps is None else gap_total / places
    return Moments(own, cross, total / places, float_total / places, count, gaps, gap_mean)


def kept_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """(batch, tokens), False where a text is padded; None where the model reads no texts."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.bool()


def as_rows(layer: Layer, x: Tensor, keep: Tensor | None = None) -> Float[Tensor, "parts places columns"]:
    """Everything the layer multiplies its weight with, as vectors; of tokens, those to ``keep``."""
    if isinstance(layer, nn.Linear):
        if keep is not None and x.shape[:-1] == keep.shape:
            return x[keep][None].float()
        return x.float().reshape(1, -1, x.shape[-1])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x.float(), layer._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, nn.Conv1d):  # F.unfold takes images only
        x, kernel, stride, dilation = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    columns = F.unfold(x, kernel, dilation=dilation, stride=stride)
    batch, _, places = columns.shape
    by_part = columns.reshape(batch, layer.groups, -1, places).permute(1, 2, 0, 3)
    # turned last, where it costs nothing: moving whole rows of places is what is quick
    return by_part.reshape(layer.groups, -1, batch * places).transpose(1, 2)


def as_output_rows(layer: Layer, x: Tensor, keep: Tensor | None = None) -> Float[Tensor, "parts places rows"]:
    """What the layer puts out at the places of `as_rows`."""
    if isinstance(layer, nn.Linear):
        return as_rows(layer, x, keep)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    by_part = x.float().reshape(len(x), layer.groups, layer.out_channels // layer.groups, -1)
    return by_part.permute(1, 2, 0, 3).flatten(2).transpose(1, 2)


def _pieces(layer: Layer, x: Tensor) -> Sequence[Tensor]:
    """The batch in parts whose unfolded form is not too large."""
    if isinstance(layer, nn.Linear) or len(x) == 0:
        return (x,)
    places = x[0, 0].numel()  # with a stride there are fewer
    examples = max(1, UNFOLDED // (places * x.shape[1] * layer.weight[0, 0].numel()))
    return [x[first : first + examples] for first in range(0, len(x), examples)]
