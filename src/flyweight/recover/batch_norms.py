"""Batch norms that a quantized network has while it is trained, and that are folded afterwards.

`flyweight.apply` folds batch norms before it quantizes. To train with them, each layer that had one gets a
norm that changes nothing at first, as it undoes the statistics of what the layer puts out. Afterwards each
channel's factor moves into the scale of the channel's codes, and the codes stay: what is stored has the form
it had. A negative factor turns the signs of the codes, or, around another zero point, reverses their order.

Source: Jacob et al. 2017, arXiv:1712.05877, section 3.2 (folding); Nagel et al. 2021, arXiv:2106.08295,
section 5.2.1 (factors left to the scales of channels).
Differs: weights are rounded as they are, not as they will be folded: rounding never sees the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.measure.graph import capture, has_batch_norm, normalised_layer
from flyweight.model import Model
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.binary import BinaryWeight
from flyweight.tensors.codebook import CodebookWeight
from flyweight.tensors.encoded import EncodedLayer, EncodedWeight
from flyweight.tensors.plain import PlainWeight

SUFFIX = "_trained_norm"
_AXES: Mapping[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4}  # of what they put out
LEAST_FACTOR = 1e-12  # of a channel: scales have to stay above 0


def normalised(model: Model) -> frozenset[str]:
    """Names of the layers whose batch norms `flyweight.measure.error.folded` folds.

    Raises:
        UnsupportedError: The model cannot be traced.
    """
    if not has_batch_norm(model.module):
        return frozenset()
    graph = capture(model)
    layers = (normalised_layer(graph, node) for node in graph.graph.nodes)
    return frozenset(str(node.target) for node in layers if node is not None)


def put_back(
    graph: fx.GraphModule, names: Collection[str], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, nn.Module]:
    """Insert a norm after each named layer that can take its factors later, in place; the norms, by layer.

    The model computes what it computed before.

    Args:
        graph: With encoded layers.
        names: From `normalised`.
        batches: Calibration batches: their statistics are what the norms start with.
    """
    calls = [n for n in graph.graph.nodes if n.op == "call_module" and n.target in names]
    chosen = [
        node
        for node in calls
        if sum(n.target == node.target for n in calls) == 1 and _takes_factors(graph, node)
    ]
    statistics = _statistics(graph, [str(node.target) for node in chosen], batches)
    inserted: dict[str, nn.Module] = {}
    for node in chosen:
        layer = str(node.target)
        inserted[layer] = _norm(*statistics[layer], axes=node.meta["val"].dim())
        name = layer.replace(".", "_") + SUFFIX
        graph.add_submodule(name, inserted[layer])
        with graph.graph.inserting_after(node):
            call = graph.graph.call_module(name, (node,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call, delete_user_cb=lambda user, own=call: user is not own)
    graph.recompile()
    return inserted


def take_out(graph: fx.GraphModule, norms: Mapping[str, nn.Module]) -> dict[str, Float[Tensor, " rows"]]:
    """Remove what `put_back` inserted, in place; the factor of each layer's rows, which codes have to take.

    The layers' biases take the shifts.
    """
    factors: dict[str, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and str(node.target).endswith(SUFFIX):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    for name, norm in norms.items():
        layer = graph.get_submodule(name)
        assert isinstance(layer, EncodedLayer)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        factors[name], shift = _affine(norm)
        own = layer.layer
        assert not isinstance(own, nn.Embedding)
        bias = shift if own.bias is None else shift + own.bias.detach() * factors[name]
        own.bias = nn.Parameter(bias)
    return factors


def with_factors(stored: EncodedWeight, factors: Float[Tensor, " rows"]) -> EncodedWeight:
    """The encoding of ``factors[:, None] * weight`` with the same codes, but for their signs.

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


def _takes_factors(graph: fx.GraphModule, node: fx.Node) -> bool:
    layer, axes = graph.get_submodule(str(node.target)), node.meta["val"].dim()
    if not isinstance(layer, EncodedLayer) or axes != _AXES.get(type(layer.layer)):
        return False
    try:
        with_factors(layer.encoding(), torch.ones(len(layer.layer.weight)))
    except TypeError:
        return False
    return True


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(factor, shift) of each channel; factors are not 0."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    factor = torch.where(factor < 0, factor.clamp_max(-LEAST_FACTOR), factor.clamp_min(LEAST_FACTOR))
    return factor, norm.bias.detach() - norm.running_mean * factor


@torch.no_grad()
def _norm(mean: Tensor, variance: Tensor, *, axes: int) -> nn.Module:
    """A batch norm that changes nothing as long as it normalises by these statistics."""
    norm = (nn.BatchNorm2d if axes == 4 else nn.BatchNorm1d)(len(mean)).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)
    return norm


@torch.no_grad()
def _statistics(
    graph: fx.GraphModule, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel that the layers put out."""
    sums: dict[str, _Sums] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            sums.setdefault(name, _Sums(output.shape[1])).add(output)

        return hook

    handles = [graph.get_submodule(name).register_forward_hook(hook_of(name)) for name in names]
    try:
        for batch in batches:
            graph(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found.mean_and_variance() for name, found in sums.items()}


@final
class _Sums:
    """Over the values of each channel, of which axis 1 has one each."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._total, self._squares = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        rows = values.double().transpose(0, 1).flatten(1)
        self._count += rows.shape[1]
        self._total += rows.sum(1)
        self._squares += rows.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = self._total / self._count
        variance = self._squares / self._count - mean.square()
        return mean.float(), variance.clamp_min(0).float()
