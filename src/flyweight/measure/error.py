"""How far a compressed layer is from the original: signal to quantization noise of weights and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from flyweight.measure.graph import capture, check_computes, fold_batch_norms, has_batch_norm
from flyweight.model import Model
from flyweight.tensors.encoded import encoded_layers

FOLDING = 1e-3  # relative, as exported files are held to: each fold rounds the weights once more


def sqnr_db(signal: Tensor, approximation: Tensor) -> float | None:
    """10·log10(Σ signal² / Σ (signal - approximation)²); None where either sum is not above 0."""
    sums = _PowerAndNoise()
    sums.add(signal, approximation)
    return sums.db()


def folded(model: Model) -> Model:
    """``model`` with its batch norms folded into the layers before them; itself where it has none.

    Raises:
        UnsupportedError: It cannot be traced, or computes something else then.
    """
    if not has_batch_norm(model.module):
        return model
    graph = capture(model)
    fold_batch_norms(graph)
    check_computes(graph, model, tolerance=FOLDING)
    copy = model.clone()
    copy.module = graph
    return copy


@torch.no_grad()
def weight_sqnr_db(compressed: nn.Module) -> dict[str, float | None]:
    """SQNR of each encoded layer's weight."""
    return {
        name: sqnr_db(layer.layer.weight, layer.encoding().decode())
        for name, layer in encoded_layers(compressed)
    }


@torch.no_grad()
def output_sqnr_db(
    original: Model, compressed: Model, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, float | None]:
    """SQNR of each layer's output, all layers before it compressed too; layers are matched by name."""
    names = [name for name, _ in encoded_layers(compressed.module)]
    sums = {name: _PowerAndNoise() for name in names}
    for batch in batches:
        before, after = _outputs(original, names, batch), _outputs(compressed, names, batch)
        for name in names:
            if name in before and name in after:
                sums[name].add(before[name], after[name])
    return {name: s.db() for name, s in sums.items()}


@final
class _PowerAndNoise:
    def __init__(self) -> None:
        self.power = self.noise = 0.0

    def add(self, signal: Tensor, approximation: Tensor) -> None:
        self.power += float(signal.double().square().sum())
        self.noise += float((signal.double() - approximation.double()).square().sum())

    def db(self) -> float | None:
        if not (self.power > 0 and self.noise > 0):
            return None
        return float(10 * torch.log10(torch.tensor(self.power / self.noise, dtype=torch.float64)))


def _outputs(model: Model, names: Sequence[str], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            kept[name] = output

        return model.module.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        model.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    return kept
