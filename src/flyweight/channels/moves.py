"""Operators that only move values, and which channel lands where when they do.

What an operator does to channels is found by running it on their numbers in place of their values, so that
views, permutations, repeats and concatenations need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from flyweight.measure.graph import ATEN

MOVES: frozenset[Any] = frozenset(
    {
        ATEN.view,
        ATEN.reshape,
        ATEN._unsafe_view,
        ATEN.permute,
        ATEN.transpose,
        ATEN.t,
        ATEN.unsqueeze,
        ATEN.squeeze,
        ATEN.expand,
        ATEN.expand_as,
        ATEN.slice,
        ATEN.select,
        ATEN.narrow,
        ATEN.flatten,
        ATEN.unflatten,
        ATEN.repeat,
        ATEN.repeat_interleave,
        ATEN.tile,
        ATEN.cat,
        ATEN.concat,
        ATEN.stack,
        ATEN.split,
        ATEN.split_with_sizes,
        ATEN.chunk,
        ATEN.unbind,
        ATEN.index,
        ATEN.index_select,
        ATEN.flip,
        ATEN.roll,
        ATEN.movedim,
        ATEN.swapaxes,
        ATEN.pixel_shuffle,
        ATEN.pixel_unshuffle,
        ATEN.channel_shuffle,
    }
)
# give each value back as it is
SAME: frozenset[Any] = frozenset(
    {
        ATEN.dropout,
        ATEN.feature_dropout,
        ATEN.contiguous,
        ATEN.clone,
        ATEN.alias,
        ATEN.detach,
        ATEN.to,
        ATEN._to_copy,
        ATEN.type_as,
        ATEN.lift_fresh_copy,
    }
)
# read no values, only sizes and kinds
SIZES: frozenset[Any] = frozenset(
    {
        ATEN._assert_tensor_metadata,
        ATEN.sym_size,
        ATEN.size,
        ATEN.zeros_like,
        ATEN.ones_like,
        ATEN.full_like,
        ATEN.empty_like,
        ATEN.new_ones,
        ATEN.new_zeros,
        ATEN.new_full,
        ATEN.new_empty,
    }
)
PADS: frozenset[Any] = frozenset({ATEN.pad, ATEN.constant_pad_nd})


def operation(node: fx.Node) -> Any:
    """The operator a node calls, whichever its overload."""
    return getattr(node.target, "overloadpacket", node.target)


def is_float(value: object) -> bool:
    """Whether it is a tensor of floating-point values."""
    return isinstance(value, Tensor) and value.is_floating_point()


def pads_with_zeros(node: fx.Node) -> bool:
    """Whether a node of `PADS` adds zeros."""
    if operation(node) is ATEN.constant_pad_nd:
        return len(node.args) < 3 or not node.args[2]
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value", 0.0)
    return bool(mode == "constant" and not value)


@torch.no_grad()
def moved(node: fx.Node, numbers: Callable[[fx.Node], Any]) -> Any:
    """What the node's operator makes of ``numbers`` of its inputs."""
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), numbers)
    return node.target(*args, **kwargs)  # type: ignore[operator]
