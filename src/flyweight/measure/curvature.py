"""Second moments of what a layer reads: the curvature of its squared output error.

Source: Frantar and Alistarh 2022, arXiv:2208.11580 (layer-wise Hessian); Li et al. 2025, arXiv:2504.02692
(GPTAQ: the float inputs beside those of the quantized model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.measure.kernel_rows import Kernel, KernelRows, output_rows
from flyweight.tensors.encoded import Layer

NOISE = 1e-10  # of the mean square: float32 keeps seven digits, and its square twice as many
UNFOLDED = 2**25  # numbers held at a time while a convolution's inputs are unfolded


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Of what one layer reads and ought to put out, in parts: the groups of a convolution, else one.

    Attributes:
        scatter: Sum of ``(x - mean) (x - mean)^T`` over everything read in the quantized model, float64.
        wanted_scatter: Sum of ``(z - wanted_mean) (x - mean)^T``, with ``z`` what the weight times ``x``
            ought to be; None where it is so.
        mean: Of ``x``.
        wanted_mean: Of ``z``.
        count: Places.
        noise: What rounding ``x`` to float32 may have done to a number on the scatter's diagonal.
    """

    scatter: Float[Tensor, "parts columns columns"]
    wanted_scatter: Float[Tensor, "parts rows columns"] | None
    mean: Float[Tensor, "parts columns"]
    wanted_mean: Float[Tensor, "parts rows"] | None
    count: int
    noise: Float[Tensor, " parts"]

    @property
    def own(self) -> Float[Tensor, "parts columns columns"]:
        """Sum of ``x x^T``."""
        return _with_products(self.scatter, self.mean, self.mean, self.count)

    @property
    def wanted(self) -> Float[Tensor, "parts rows columns"] | None:
        """Sum of ``z x^T``."""
        if self.wanted_scatter is None or self.wanted_mean is None:
            return None
        return _with_products(self.wanted_scatter, self.wanted_mean, self.mean, self.count)

    def centred(self) -> Moments:
        """Those of the differences from the means: all that weights see where a bias takes the means."""
        wanted = None if self.wanted_mean is None else torch.zeros_like(self.wanted_mean)
        return replace(self, mean=torch.zeros_like(self.mean), wanted_mean=wanted)


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
    """Sums of differences from the first batch's means: beside a large mean, the rest keeps its digits."""

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
        self._start: Tensor | None = None  # of the inputs' channels
        self._wanted_start: Tensor | None = None

    def add(self, x: Tensor, output: Tensor | None, keep: Tensor | None) -> None:
        """What the layer reads and ought to put out."""
        if not len(x):
            return
        kernel = kernel_of(self._layer)
        image = None if kernel is None else _padded(self._layer, x)
        if kernel is not None and image is not None and kernel.shares_rows(image.shape[2]):
            self._add_image(kernel, image, output)
            return
        vectors = as_rows(self._layer, x, keep)
        if not vectors.shape[1]:
            return
        if self._start is None:
            self._start = self._by_channel(vectors.mean(1))
        vectors = vectors - self._by_column(self._start)[:, None]
        self._own += (vectors.mT @ vectors).double()
        self._total += vectors.sum(1)
        self._count += vectors.shape[1]
        if output is not None:
            places = self._from_start(as_output_rows(self._layer, output, keep), 1)
            self._wanted += (places.mT @ vectors).double()
            self._wanted_total += places.sum(1)

    def _add_image(self, kernel: Kernel, image: Tensor, output: Tensor | None) -> None:
        if self._start is None:
            self._start = image.mean((0, 2, 3))
        rows = KernelRows(kernel, image - self._start[:, None, None])
        self._own += rows.own()
        self._total += rows.total()
        self._count += rows.count
        if output is not None:
            whole = output[:, :, None] if output.dim() == 3 else output
            ought = self._from_start(output_rows(whole, kernel.parts), 2)
            self._wanted += rows.wanted(ought)
            self._wanted_total += ought.sum(2)

    def _from_start(self, outputs: Tensor, axis: int) -> Tensor:
        """Differences of outputs from what those of the first batch were on average."""
        if self._wanted_start is None:
            self._wanted_start = outputs.mean(axis)
        return outputs - self._wanted_start.unsqueeze(axis)

    def _by_channel(self, columns: Tensor) -> Tensor:
        """One number a channel of a convolution's inputs, one a column of other layers."""
        kernel = kernel_of(self._layer)
        if kernel is None:
            return columns[0]
        return columns.reshape(-1, kernel.size[0] * kernel.size[1]).mean(1)

    def _by_column(self, channels: Tensor) -> Tensor:
        """(parts, columns) of what `_by_channel` gave."""
        kernel = kernel_of(self._layer)
        if kernel is None:
            return channels[None]
        return channels.repeat_interleave(kernel.size[0] * kernel.size[1]).reshape(kernel.parts, -1)

    def moments(self) -> Moments:
        """Of all that was added; raises ValueError where it is not finite."""
        if not bool(torch.isfinite(self._own).all() and torch.isfinite(self._wanted).all()):
            raise ValueError("reads NaN or infinite values on calibration data")
        count = max(self._count, 1)
        off, wanted_off = self._total / count, self._wanted_total / count
        mean = off if self._start is None else off + self._by_column(self._start)
        scatter = _with_products(self._own, off, off, -count)
        squares = scatter.diagonal(dim1=1, dim2=2) / count + mean.square()
        noise = NOISE * count * squares.mean(1)
        if not self._with_outputs:
            return Moments(scatter, None, mean, None, self._count, noise)
        wanted_mean = wanted_off - self._bias
        if self._wanted_start is not None:
            wanted_mean = wanted_mean + self._wanted_start
        wanted = _with_products(self._wanted, wanted_off, off, -count)
        return Moments(scatter, wanted, mean, wanted_mean, self._count, noise)


def _with_products(sums: Tensor, one: Tensor, other: Tensor, count: int) -> Tensor:
    """``sums + count one other^T`` of each part, without a second matrix of that size."""
    return torch.baddbmm(sums, one[:, :, None].to(sums.dtype), other[:, None].to(sums.dtype), alpha=count)


def kept_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """(batch, tokens), False where a text is padded; None where the model reads no texts.

    So it is where a mask holds other numbers than 0 and 1, such as what is added to attention scores.
    """
    mask = batch.get("attention_mask")
    if mask is None or not bool(((mask == 0) | (mask == 1)).all()):
        return None
    return mask.bool()


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
