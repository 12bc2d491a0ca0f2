"""What a graph computes when parts are left out without being removed: what surgery is held against.

Everything that a removed class wrote is set to 0, and what sums up over channels counts only those left.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

import torch
from torch import Tensor, fx

from flyweight.channels.moves import operation
from flyweight.measure.graph import ATEN
from flyweight.structure.dependencies import Dependencies
from flyweight.structure.operators import LAYER_NORMS, args_of, options_of


@final
class Masked(fx.Interpreter):
    """Runs a graph, at the batch that ``found`` was found on, without ``removed`` classes."""

    def __init__(self, graph: fx.GraphModule, found: Dependencies, removed: Collection[int]) -> None:
        super().__init__(graph)
        self._found, self._gone = found, torch.tensor(sorted(removed), dtype=torch.int64)

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        name = operation(n)
        if name in LAYER_NORMS:
            result = self._norm(n)
        elif name is ATEN.mean:
            result = self._mean(n)
        elif name is ATEN.group_norm:
            result = self._group_norm(n)
        else:
            result = super().run_node(n)
        return self._without(n, result)

    def _left(self, node: fx.Node) -> Tensor:
        return ~torch.isin(self._found.values[node], self._gone)

    def _without(self, node: fx.Node, result: Any) -> Any:
        classes = self._found.values.get(node)
        if isinstance(result, Tensor) and isinstance(classes, Tensor):
            return self._zeroed(result, classes)
        if isinstance(result, tuple | list) and isinstance(classes, tuple):
            return [self._zeroed(r, c) for r, c in zip(result, classes, strict=True)]
        return result

    def _zeroed(self, values: Tensor, classes: Tensor) -> Tensor:
        gone = torch.isin(classes, self._gone)
        return torch.where(gone, 0.0, values) if bool(gone.any()) else values

    def _norm(self, node: fx.Node) -> Any:
        read: Any = args_of(node)[0]
        kept = self._left(read).reshape(-1, self.env[read].shape[-1])[0]
        values = {source: self.env[source] for source in node.all_input_nodes}
        narrow = {s: v[..., kept] if v.shape[-1] == len(kept) else v for s, v in values.items()}
        args, kwargs = fx.map_arg((args_of(node), dict(node.kwargs)), narrow.__getitem__)
        part = node.target(args[0], [int(kept.sum())], *args[2:], **kwargs)  # type: ignore[operator]
        whole = torch.zeros_like(values[read])
        whole[..., kept] = part
        return whole

    def _mean(self, node: fx.Node) -> Any:
        read: Any = args_of(node)[0]
        args, kwargs = fx.map_arg((args_of(node), dict(node.kwargs)), self.env.__getitem__)
        left = self._left(read).to(args[0].dtype)
        whole, share = (node.target(v, *args[1:], **kwargs) for v in (args[0], left))  # type: ignore[operator]
        return whole / share.clamp_min(torch.finfo(torch.float32).tiny)

    def _group_norm(self, node: fx.Node) -> Any:
        read, groups = args_of(node)[:2]
        x, left = self.env[read], self._left(read)
        args = fx.map_arg(args_of(node), self.env.__getitem__)
        weight, bias = (*args[2:4], None, None)[:2]
        eps = args[4] if len(args) > 4 else options_of(node).get("eps", 1e-5)
        shaped, kept = (v.reshape(len(x), groups, -1) for v in (x * left, left.to(x.dtype)))
        count = kept.sum(-1, keepdim=True).clamp_min(1)
        mean = shaped.sum(-1, keepdim=True) / count
        variance = ((shaped - mean).square() * kept).sum(-1, keepdim=True) / count
        normed = ((shaped - mean) * (variance + eps).rsqrt()).reshape(x.shape)
        wide = (1, -1, *(1,) * (x.dim() - 2))
        scaled = normed if weight is None else normed * weight.reshape(wide)
        return scaled if bias is None else scaled + bias.reshape(wide)
