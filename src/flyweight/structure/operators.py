"""Which operators do what to the parts of a value; see `flyweight.structure.rules`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from flyweight.measure.graph import ATEN

# operator -> (position of its weight, of its bias, axis of rows, of columns, channel axis from the end of a
# value without its spatial axes)
LINEAR: Mapping[Any, tuple[int, int | None, int, int]] = {
    ATEN.linear: (1, 2, 0, 1),
    ATEN.addmm: (2, 0, 1, 0),
    ATEN.mm: (1, None, 1, 0),
}
CONVOLUTIONS: Mapping[Any, int] = {ATEN.conv1d: 1, ATEN.conv2d: 2, ATEN.conv3d: 3}  # spatial axes
TRANSPOSED: Mapping[Any, int] = {
    ATEN.conv_transpose1d: 1,
    ATEN.conv_transpose2d: 2,
    ATEN.conv_transpose3d: 3,
}
# operator -> positions of its weight and bias; the axes given are normalised over
LAYER_NORMS: Mapping[Any, tuple[int, ...]] = {ATEN.layer_norm: (2, 3), ATEN.rms_norm: (2,)}
# axis 1 is normalised channel by channel: positions of all that has one number a channel
CHANNEL_NORMS: Mapping[Any, tuple[int, ...]] = {
    ATEN.batch_norm: (1, 2, 3, 4),
    ATEN.instance_norm: (1, 2, 3, 4),
}
SOFTMAX = frozenset({ATEN.softmax, ATEN._softmax, ATEN._safe_softmax, ATEN.log_softmax, ATEN.cumsum})
# operator -> how many axes at the end it computes over; what lies there is all alike
SPATIAL: Mapping[Any, int] = {
    ATEN.max_pool1d: 1,
    ATEN.max_pool2d: 2,
    ATEN.max_pool3d: 3,
    ATEN.avg_pool1d: 1,
    ATEN.avg_pool2d: 2,
    ATEN.avg_pool3d: 3,
    ATEN.adaptive_avg_pool1d: 1,
    ATEN.adaptive_avg_pool2d: 2,
    ATEN.adaptive_max_pool2d: 2,
    ATEN.upsample_nearest1d: 1,
    ATEN.upsample_nearest2d: 2,
    ATEN._upsample_nearest_exact2d: 2,
    ATEN.upsample_bilinear2d: 2,
    ATEN.upsample_bicubic2d: 2,
}
SUMS = frozenset({ATEN.sum, ATEN.mean})  # of what is left, where parts are removed
REDUCTIONS = SUMS | {ATEN.amax, ATEN.amin, ATEN.var, ATEN.std, ATEN.any, ATEN.all}
PRODUCTS = frozenset({ATEN.matmul, ATEN.bmm})
# look things up along an axis by constants that surgery does not follow
LOOKUPS = frozenset({ATEN.index_select, ATEN.roll, ATEN.gather, ATEN.select, ATEN.unbind})
# compute on each value by itself, though they are not tagged as such
POINTWISE = frozenset(
    {ATEN.hardswish, ATEN.mish, ATEN.softplus, ATEN.selu, ATEN.celu, ATEN.where, ATEN.masked_fill}
)
CONCATENATIONS = frozenset({ATEN.cat, ATEN.concat})


def args_of(node: fx.Node) -> Any:
    """What a node is called with, by position: each operator knows what it gets."""
    return node.args


def options_of(node: fx.Node) -> Any:
    """What a node is called with, by name."""
    return node.kwargs
