"""Removing parts of a graph's tensors, and rewriting the sizes that its operators were given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor, fx, nn

from flyweight.channels.moves import operation
from flyweight.errors import UnsupportedError
from flyweight.measure.graph import ATEN, BATCH_NORMS, module_of
from flyweight.structure.dependencies import Dependencies, kept_places
from flyweight.structure.operators import args_of, options_of

_SIZES = {ATEN.view, ATEN.reshape, ATEN._unsafe_view, ATEN.expand}
_NORM_SHAPES = {ATEN.layer_norm, ATEN.rms_norm}
_GROUPS: Mapping[Any, int] = {ATEN.conv1d: 6, ATEN.conv2d: 6, ATEN.conv3d: 6}


@torch.no_grad()
def remove(graph: fx.GraphModule, found: Dependencies, removed: Collection[int]) -> None:
    """Remove classes from all tensors, in place.

    Args:
        graph: That ``found`` was found on.
        found: Its dependencies.
        removed: Classes; of no axis all may go.

    Raises:
        UnsupportedError: An axis would have nothing left, or an operator has a size that is not understood.
    """
    surgery = _Surgery(graph, found, set(removed))
    surgery.shrink_tensors()
    for node in list(graph.graph.nodes):
        surgery.rewrite(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


@final
class _Surgery:
    def __init__(self, graph: fx.GraphModule, found: Dependencies, removed: set[int]) -> None:
        self._graph, self._found, self._removed = graph, found, removed
        self._gone = torch.tensor(sorted(removed), dtype=torch.int64)
        self._rules: Mapping[Any, Callable[[fx.Node], None]] = {
            **dict.fromkeys(_SIZES, self._resize),
            **dict.fromkeys(_NORM_SHAPES, self._renorm),
            **dict.fromkeys(_GROUPS, self._regroup),
            ATEN.unflatten: self._unflatten,
            ATEN.split: self._split,
            ATEN.split_with_sizes: self._split,
            ATEN.chunk: self._split,
            ATEN.slice: self._slice,
            ATEN.narrow: self._narrow,
            ATEN.pad: self._pad,
            ATEN.constant_pad_nd: self._pad,
            ATEN.group_norm: self._group_norm,
            ATEN.scaled_dot_product_attention: self._attention,
        }

    def shrink_tensors(self) -> None:
        """Parameters and buffers, under all their names, and what their modules say of their sizes."""
        tensors: dict[str, Tensor] = dict(self._graph.named_parameters(remove_duplicate=False))
        tensors |= dict(self._graph.named_buffers(remove_duplicate=False))
        names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(id(tensor), []).append(name)
        shrunk: dict[str, Tensor] = {}
        for (name, axis), classes in self._found.axes.items():
            kept = kept_places(classes, self._removed)
            if not len(kept):
                raise UnsupportedError(f"nothing would be left of axis {axis} of {name!r}: remove less")
            if len(kept) < len(classes):
                shrunk[name] = shrunk.get(name, tensors[name]).detach().index_select(axis, kept)
        for name, tensor in shrunk.items():
            old = tensors[name]
            new: Tensor = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
            for alias in names[id(old)]:
                path, _, attribute = alias.rpartition(".")
                setattr(self._graph.get_submodule(path), attribute, new)
        for module in self._graph.modules():
            _state_sizes(module)

    def rewrite(self, node: fx.Node) -> None:
        """The sizes that one operator was given."""
        if node.op == "call_module":
            self._regroup_module(node)
            return
        rule = self._rules.get(operation(node)) if node.op == "call_function" else None
        if rule is not None:
            rule(node)

    def _left(self, classes: Tensor) -> Bool[Tensor, " ..."]:
        return ~torch.isin(classes, self._gone)

    def _along(self, classes: Tensor, axis: int) -> Bool[Tensor, " size"]:
        """Which indices along an axis are left; all, where nothing goes along it."""
        left = self._left(classes)
        others = [a for a in range(left.dim()) if a != axis % left.dim()]
        return left.permute(*others, axis).reshape(-1, left.shape[axis]).any(0)

    def _size(self, node: fx.Node, axis: int) -> int:
        """Of the node's value along an axis, of one example."""
        return int(self._along(self._found.values[node], axis).sum())

    def _changes(self, node: fx.Node, axis: int) -> bool:
        return bool(self._size(node, axis) < self._found.values[node].shape[axis])

    def _sizes(self, node: fx.Node, sizes: Sequence[Any], first: int = 0) -> list[Any]:
        """Sizes of a result along axes from ``first`` on."""
        new = list(sizes)
        for place, size in enumerate(sizes):
            axis = place + first
            if size == -1 or not self._changes(node, axis):
                continue
            if isinstance(size, int):
                new[place] = self._size(node, axis)
            elif -1 not in new:
                new[place] = -1
            else:
                raise UnsupportedError(f"the size {size} that {node.name!r} is given is not understood")
        return new

    def _resize(self, node: fx.Node) -> None:
        if self._found.values[node] is not None:
            node.update_arg(1, self._sizes(node, args_of(node)[1]))

    def _unflatten(self, node: fx.Node) -> None:
        dims = self._found.values[node].dim()
        sizes: Any = args_of(node)[2]
        source = dims - len(sizes) + 1
        node.update_arg(2, self._sizes(node, sizes, int(args_of(node)[1]) % source))

    def _renorm(self, node: fx.Node) -> None:
        node.update_arg(1, [self._size(node, -1)])

    def _split(self, node: fx.Node) -> None:
        axis = int(args_of(node)[2]) if len(args_of(node)) > 2 else int(options_of(node).get("dim", 0))
        parts = self._found.values[node]
        if not isinstance(parts, tuple):
            return
        sizes = [int(self._along(part, axis).sum()) for part in parts]
        if sizes == [part.shape[axis] for part in parts]:
            return
        node.target, node.args, node.kwargs = (
            ATEN.split_with_sizes.default,
            (args_of(node)[0], sizes, axis),
            {},
        )

    def _slice(self, node: fx.Node) -> None:
        given = list(args_of(node))
        source, axis, start, end, step = given + [0, None, None, 1][len(given) - 1 :]
        assert isinstance(source, fx.Node)
        classes = self._found.values[source]
        if classes is None or not isinstance(axis, int) or not self._changes(source, axis):
            return
        known = all(bound is None or isinstance(bound, int) for bound in (start, end))
        if not known or step != 1:
            raise UnsupportedError(f"the slice {node.name!r} takes is not understood")
        left = self._along(classes, axis)
        low, high, _ = slice(start, end).indices(len(left))
        first = int(left[:low].sum())
        node.args = (source, axis, first, first + int(left[low:high].sum()))

    def _narrow(self, node: fx.Node) -> None:
        source, axis, start, length = args_of(node)
        assert isinstance(source, fx.Node)
        if not isinstance(axis, int) or not self._changes(source, axis):
            return
        if not isinstance(start, int) or not isinstance(length, int):
            raise UnsupportedError(f"the slice {node.name!r} takes is not understood")
        left = self._along(self._found.values[source], axis)
        node.args = (source, axis, int(left[:start].sum()), int(left[start : start + length].sum()))

    def _pad(self, node: fx.Node) -> None:
        source: Any = args_of(node)[0]
        amounts: Any = list(args_of(node)[1])
        classes = self._found.values[node]
        for place in range(0, len(amounts), 2):
            axis = classes.dim() - 1 - place // 2
            before, after = amounts[place : place + 2]
            if not (before or after) or not self._changes(node, axis):
                continue
            left = self._along(classes, axis)
            end = before + self._found.values[source].shape[axis]
            amounts[place : place + 2] = int(left[:before].sum()), int(left[end:].sum())
        node.update_arg(1, amounts)

    def _group_norm(self, node: fx.Node) -> None:
        if args_of(node)[1] == self._found.values[node].shape[1]:
            node.update_arg(1, self._size(node, 1))

    def _attention(self, node: fx.Node) -> None:
        """The scale stays, whatever becomes of the size of a head."""
        query: Any = args_of(node)[0]
        if self._changes(query, -1) and options_of(node).get("scale") is None:
            node.kwargs = {**node.kwargs, "scale": self._found.values[query].shape[-1] ** -0.5}

    def _regroup(self, node: fx.Node) -> None:
        at = _GROUPS[operation(node)]
        if len(args_of(node)) > at and args_of(node)[at] != 1:
            read: Any = args_of(node)[0]
            weight = self._graph.get_parameter(str(args_of(node)[1].target))
            node.update_arg(at, self._size(read, 1) // weight.shape[1])

    def _regroup_module(self, node: fx.Node) -> None:
        module = module_of(self._graph, node)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            read: Any = args_of(node)[0]
            module.in_channels = self._size(read, -len(module.kernel_size) - 1)
            module.groups = module.in_channels // module.weight.shape[1]


def _state_sizes(module: nn.Module) -> None:
    """Let a module say what its tensors are now."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        module.out_channels = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, BATCH_NORMS):
        of = module.running_mean if module.weight is None else module.weight
        if of is not None:
            module.num_features = len(of)
