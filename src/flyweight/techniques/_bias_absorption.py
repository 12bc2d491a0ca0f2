"""Bias absorption: what a relu nearly always lets through is moved into the biases of the layers after it.

A channel that is scaled up brings its bias along, and one high bias widens the range of all activations.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3.
Differs: mean and spread of each channel come from calibration data, as batch norms are folded by then; only
where the next layers pad no border with zeros, beside which the sum would be another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.channels.moves import operation
from flyweight.channels.rules import layer_of, scaled_layer
from flyweight.channels.scales import grouped, weight_of
from flyweight.measure.graph import ATEN, module_of
from flyweight.techniques._bias_correction import channels_first, joined

if TYPE_CHECKING:
    from flyweight.model import Model

DEVIATIONS = 3  # of the source: what is absorbed lies that many standard deviations below the mean


@torch.no_grad()
def absorb(
    model: Model, graph: fx.GraphModule, layers: Collection[str], batches: Sequence[Mapping[str, Tensor]]
) -> None:
    """Move high biases on, in place; calibration values below what is absorbed come out larger than before.

    Args:
        model: Its layers are changed.
        graph: Of the model, with the same names.
        layers: Those whose biases may change.
        batches: At least one.
    """
    sample = joined(batches)
    for before, after in _places(graph, set(layers)):
        absorbed = _absorbed(model, before, sample)
        _add_to_bias(model.module, before, -absorbed)
        for name in after:
            _add_to_bias(model.module, name, _response(model.module, name, absorbed))


def _places(graph: fx.GraphModule, layers: set[str]) -> Iterator[tuple[str, list[str]]]:
    """A layer, and those that read its relu, where nothing else does."""
    calls = [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    once = {name for name in layers if calls.count(name) == 1}
    for node in graph.graph.nodes:
        if operation(node) not in (ATEN.relu, ATEN.relu_):
            continue
        before, users = node.all_input_nodes[0], list(node.users)
        readers = [str(u.target) for u in users if u.op == "call_module" and _sums_all(module_of(graph, u))]
        alone = layer_of(module_of(graph, before)) is not None and len(before.users) == 1
        if alone and len(readers) == len(users) and {str(before.target), *readers} <= once:
            yield str(before.target), readers


def _sums_all(module: nn.Module | None) -> bool:
    """Whether every output of a layer sums over its whole kernel: no border is padded with zeros."""
    layer = layer_of(module)
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode == "zeros":
        return layer.padding == "valid" or not any(layer.padding) if layer.padding != "same" else False
    return layer is not None


def _absorbed(model: Model, name: str, sample: Mapping[str, Tensor]) -> Float[Tensor, " channels"]:
    """What nearly every value of each channel exceeds, 0 at least."""
    kept: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(channels_first(module, output).clone())

    handle = model.module.get_submodule(name).register_forward_hook(hook)
    try:
        model.outputs(sample)
    finally:
        handle.remove()
    values = kept[0].double()
    return (values.mean(1) - DEVIATIONS * values.std(1, correction=0)).clamp_min(0).float()


def _response(root: nn.Module, name: str, constant: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
    """What a layer without its bias makes of an input that is constant in each channel."""
    weight = grouped(scaled_layer(root, name), weight_of(root, name)).sum(-1)
    return (weight @ constant.reshape(len(weight), -1, 1)).reshape(-1)


def _add_to_bias(root: nn.Module, name: str, amount: Float[Tensor, " rows"]) -> None:
    layer = scaled_layer(root, name)
    if bool(amount.any()):
        layer.bias = nn.Parameter(amount if layer.bias is None else layer.bias + amount)
