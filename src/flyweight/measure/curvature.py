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

from flyweight.measure.kernel_rows import Kernel, KernelRows, output_rows
from flyweight.tensors.encoded import Layer

UNFOLDED = 2**25  # numbers held at a time while a convolution's inputs are unfolded


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Of what one layer reads and ought to put out, in parts: the groups of a convolution, else one.

    Attributes:
        own: Sum of ``x x^T`` over everything read in the quantized model, float64.
        wanted: Sum of ``z x^T``, with ``z`` what the weight times ``x`` ought to be; None where it is so.
        mean: Of ``x``.
        wanted_mean: Of ``z``.
        count: Places.
    """

    own: Float[Tensor, "parts columns columns"]
    wanted: Float[Tensor, "parts rows columns"] | None
    mean: Float[Tensor, "parts columns"]
    wanted_mean: Float[Tensor, "parts rows"] | None
    count: int

    def centred(self) -> Moments:
        """Those of the differences from the means: all that weights see where a bias takes the means."""
        own = self.own - self.count * self.mean[:, :, None] * self.mean[:, None]
        nothing = torch.zeros_like(self.mean)
        if self.wanted is None or self.wanted_mean is None:
            return Moments(own, None, nothing, None, self.count)
        wanted = self.wanted - self.count * self.wanted_mean[:, :, None] * self.mean[:, None]
        return Moments(own, wanted, nothing, torch.zeros_like(self.wanted_mean), self.count)


def moments(
    layer: Layer,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor] | None = None,
    keep: Sequence[Tensor | None] | None = None,
) -> Moments:
    """Moments of a linear or convolutional layer.

    Args:
        layer: Not an embedding.
        inputs: What it reads in the quantized model, batch by batch.
        outputs: What it ought to put out, its bias included; None where that is what it does put out.
        keep: For each batch, (batch, tokens) bool: the tokens that count, where a linear layer reads tokens.

    Raises:
        ValueError: An input or an output is not finite.
    """
    sums = _Sums(layer, outputs is not None)
    for index, x in enumerate(inputs):
        kept, first = None if keep is None else keep[index], 0
        output = None if outputs is None else outputs[index]
        for read in _pieces(layer, x):
            sums.add(read, None if output is None else output[first : first + len(read)], kept)
            first += len(read)
    return sums.moments()


@final
class _Sums:
    def __init__(self, layer: Layer, with_outputs: bool) -> None:
        parts: int = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
        rows, columns = layer.weight.shape[0] // parts, layer.weight[0].numel()
        self._layer, self._with_outputs, self._count = layer, with_outputs, 0
        self._bias = torch.zeros(parts, rows)
        if not isinstance(layer, nn.Embedding) and layer.bias is not None:
            self._bias = layer.bias.detach().float().reshape(parts, rows)
        self._own = torch.zeros(parts, columns, columns, dtype=torch.float64)
        self._wanted = torch.zeros(parts, rows, columns, dtype=torch.float64)
        self._total, self._wanted_total = self._own[:, 0].clone(), self._wanted[..., 0].clone()

    def add(self, x: Tensor, output: Tensor | None, keep: Tensor | None) -> None:
        """What the layer reads and ought to put out."""
        kernel = kernel_of(self._layer)
        image = None if kernel is None else _padded(self._layer, x)
        if kernel is not None and image is not None and kernel.shares_rows(image.shape[2]):
            rows = KernelRows(kernel, image)
            self._own += rows.own()
            self._total += rows.total()
            self._count += rows.count
            if output is not None:
                image = output[:, :, None] if output.dim() == 3 else output
                ought = output_rows(image, kernel.parts) - self._bias[..., None, None]
                self._wanted += rows.wanted(ought)
                self._wanted_total += ought.flatten(2).sum(-1)
            return
        vectors = as_rows(self._layer, x, keep)
        self._own += (vectors.mT @ vectors).double()
        self._total += vectors.sum(1)
        self._count += vectors.shape[1]
        if output is not None:
            places = as_output_rows(self._layer, output, keep) - self._bias[:, None]
            self._wanted += (places.mT @ vectors).double()
            self._wanted_total += places.sum(1)

    def moments(self) -> Moments:
        """Of all that was added; raises ValueError where it is not finite."""
        if not bool(torch.isfinite(self._own).all() and torch.isfinite(self._wanted).all()):
            raise ValueError("reads NaN or infinite values on calibration data")
        places = max(self._count, 1)
        mean = self._total / places
        if not self._with_outputs:
            return Moments(self._own, None, mean, None, self._count)
        return Moments(self._own, self._wanted, mean, self._wanted_total / places, self._count)


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
    kernel = kernel_of(layer)
    assert kernel is not None
    columns = F.unfold(_padded(layer, x), kernel.size, dilation=kernel.dilation, stride=kernel.stride)
    batch, _, places = columns.shape
    by_part = columns.reshape(batch, kernel.parts, -1, places).permute(1, 2, 0, 3)
    # turned last, where it costs nothing: moving whole rows of places is what is quick
    return by_part.reshape(kernel.parts, -1, batch * places).transpose(1, 2)


def kernel_of(layer: Layer) -> Kernel | None:
    """A convolution as one over images, whose signals are images of one row; None for other layers."""
    if isinstance(layer, nn.Conv2d):
        size, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    elif isinstance(layer, nn.Conv1d):
        size, stride, dilation = (1, *layer.kernel_size), (1, *layer.stride), (1, *layer.dilation)
    else:
        return None
    return Kernel(size=_pair(size), stride=_pair(stride), dilation=_pair(dilation), parts=layer.groups)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values
    return height, width


def _padded(layer: Layer, x: Tensor) -> Float[Tensor, "batch channels height width"]:
    """What a convolution steps over, as an image."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x.float(), layer._reversed_padding_repeated_twice, mode=mode)
    return padded[:, :, None] if isinstance(layer, nn.Conv1d) else padded


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
