"""One grid a channel for the network's input, at no cost: the first convolution absorbs them.

Normalised pixels lie on another grid in each channel (the standard deviations differ), and one scale for all
of them misses every grid: on CIFAR ResNet-20 that was the largest single source of error. The convolution's
weights take the scales, its bias takes the zero points, and the kernel reads plain uint8 codes. Padding,
which must be the value 0 and so another code in each channel, is done before rounding.

Source: the folding of Jacob et al. 2017, arXiv:1712.05877, equation 7, applied to each input channel by
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from flyweight.measure.graph import module_of
from flyweight.tensors.activation import UINT8_HIGHEST, ChannelQuantizer


@final
@dataclass(frozen=True, eq=False)
class FirstConvolution:
    """The convolution that alone reads the network's only input.

    Attributes:
        node: Its call.
        name: Of the layer.
        layer: The layer itself.
        padding: (left, right, top, bottom), in pixels.
    """

    node: fx.Node
    name: str
    layer: nn.Conv2d
    padding: tuple[int, int, int, int]


def first_convolution(graph: fx.GraphModule, layers: Sequence[str]) -> FirstConvolution | None:
    """The first layer if its input can have a grid a channel: an ungrouped, zero-padded Conv2d."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or len(inputs[0].users) != 1:
        return None
    reader = next(iter(inputs[0].users))
    layer = module_of(graph, reader)
    if not isinstance(layer, nn.Conv2d) or str(reader.target) not in layers:
        return None
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    if sum(n.target == reader.target for n in graph.graph.nodes if n.op == "call_module") > 1:
        return None
    height, width = layer.padding
    return FirstConvolution(reader, str(reader.target), layer, (width, width, height, height))


@torch.no_grad()
def absorb(first: FirstConvolution, batches: Sequence[Mapping[str, Tensor]]) -> ChannelQuantizer:
    """The quantizer of the network's input; the convolution is changed, in place, to read its codes."""
    layer, source = first.layer, str(first.node.all_input_nodes[0].target)
    low, high = _channel_ranges([batch[source] for batch in batches])
    scale = ((high - low) / UINT8_HIGHEST).clamp_min(torch.finfo(torch.float32).tiny)
    zero_point = (-low / scale).round().clamp(0, UINT8_HIGHEST)
    # another layer may share the old one
    layer.weight = nn.Parameter(layer.weight * scale.reshape(1, -1, 1, 1))
    shift = (layer.weight.sum((2, 3)) * zero_point).sum(1)
    layer.bias = nn.Parameter(-shift if layer.bias is None else layer.bias - shift)
    layer.padding = (0, 0)
    return ChannelQuantizer(scale, zero_point.to(torch.uint8), padding=first.padding)


def _channel_ranges(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(low, high) of each channel over all inputs (batch, channels, height, width), 0 included."""
    low = torch.stack([x.amin((0, 2, 3)) for x in inputs]).amin(0)
    high = torch.stack([x.amax((0, 2, 3)) for x in inputs]).amax(0)
    return low.clamp(max=0.0), high.clamp(min=0.0)
