"""Batch norms that a quantized network has while it is trained, and that are folded afterwards.

`flyweight.apply` folds batch norms before it quantizes. To train with them, each layer that had one gets a
norm that changes nothing at first, as it undoes the statistics of what the layer puts out. Afterwards each
channel's factor moves into the scale of the channel's codes: what is stored has the form it had.

A norm makes the length of its layer's rows immaterial to what is computed, but not to how fast they learn. So
rows are brought to length 1, or those that folding made short would change their codes too readily, and long
ones hardly ever.

Source: Jacob et al. 2017, arXiv:1712.05877, section 3.2 (folding); Salimans and Kingma 2016,
arXiv:1602.07868, section 2 (lengths and learning).
Differs: weights are rounded as they are, not as they will be folded: rounding never sees the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.measure.graph import capture, has_batch_norm, normalised_layer
from flyweight.model import Model
from flyweight.recover.grids import multiply_rows, with_factors
from flyweight.tensors.encoded import EncodedLayer

SUFFIX = "_trained_norm"
_AXES: Mapping[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4}  # of what they put out
LEAST_FACTOR = 1e-12  # of a channel: scales have to stay above 0
LEAST_LENGTH = 1e-12  # of a row that is brought to length 1


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

    The model computes what it computed before; the layers are thawed.

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
        factors = _to_unit_rows(graph.get_submodule(layer))
        inserted[layer] = _norm(*statistics[layer], factors, axes=node.meta["val"].dim())
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


def _takes_factors(graph: fx.GraphModule, node: fx.Node) -> bool:
    layer, axes = graph.get_submodule(str(node.target)), node.meta["val"].dim()
    if not isinstance(layer, EncodedLayer) or axes != _AXES.get(type(layer.layer)):
        return False
    weight = layer.layer.weight
    if sum(p is weight for _, p in graph.named_parameters(remove_duplicate=False)) > 1:
        return False  # another layer has it too
    try:
        with_factors(layer.encoding(), torch.ones(len(weight)))
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
def _to_unit_rows(layer: nn.Module) -> Tensor:
    """Bring each row of a layer to length 1, its bias with it, in place; the factors. Rows of 0 stay."""
    assert isinstance(layer, EncodedLayer)
    lengths = layer.layer.weight.flatten(1).norm(dim=1)
    factors = torch.where(lengths > LEAST_LENGTH, 1 / lengths, torch.ones_like(lengths))
    multiply_rows(layer, factors)
    assert not isinstance(layer.layer, nn.Embedding)
    if layer.layer.bias is not None:
        layer.layer.bias.mul_(factors)
    return factors


@torch.no_grad()
def _norm(mean: Tensor, variance: Tensor, factors: Tensor, *, axes: int) -> nn.Module:
    """A batch norm that undoes ``factors`` as long as it normalises by these statistics times them."""
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    norm = kinds[axes](len(mean)).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean * factors)
    norm.running_var.copy_(variance * factors.square())
    norm.weight.copy_((norm.running_var + norm.eps).sqrt() / factors)
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
