"""Bias correction: rounding shifts the mean of a layer's output; the bias takes the shift back.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical correction).
Differs: one pass over the network corrects each layer as it is reached, so that later layers see corrected
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from flyweight.measure.graph import module_of
from flyweight.tensors.encoded import EncodedLayer

CORRECTION_EXAMPLES = 256


def channels_first(module: nn.Module, output: Tensor) -> Tensor:
    """(channels, values) of a layer's output: convolutions have channels on axis 1, the others last."""
    layer = module.layer if isinstance(module, EncodedLayer) else module
    axis = 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else -1
    return output.movedim(axis, 0).flatten(1)


@torch.no_grad()
def mean_outputs(
    graph: fx.GraphModule, batch: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """Mean output by channel, (channels,), of the named linear and convolutional layers."""
    means: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            means[name] = channels_first(module, output).mean(1)

        return graph.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        graph(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return means


@torch.no_grad()
def correct(graph: fx.GraphModule, batch: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Shift each layer's bias, in place, until its mean output is the wanted one."""
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    _Corrector(graph, wanted).run(*(batch[name] for name in names))


def joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The first `CORRECTION_EXAMPLES` examples, of batches shaped like the first, as one batch."""
    first = batches[0]
    alike = [b for b in batches if all(b[name].shape[1:] == value.shape[1:] for name, value in first.items())]
    return {name: torch.cat([b[name] for b in alike])[:CORRECTION_EXAMPLES] for name in first}


@final
class _Corrector(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, wanted: Mapping[str, Tensor]) -> None:
        super().__init__(graph)
        self._graph, self._wanted = graph, wanted

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        owner = module_of(self._graph, n)
        wanted = self._wanted.get(str(n.target))
        if wanted is None or not isinstance(owner, EncodedLayer) or isinstance(owner.layer, nn.Embedding):
            return output
        shift = wanted - channels_first(owner, output).mean(1)
        before = torch.zeros_like(shift) if owner.layer.bias is None else owner.layer.bias
        owner.layer.bias = nn.Parameter(before + shift)
        return super().run_node(n)
