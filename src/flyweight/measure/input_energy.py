"""How much each weight of a layer matters to its output: the mean square of what it is multiplied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flyweight.errors import UnsupportedError
from flyweight.measure.curvature import as_rows, kept_tokens
from flyweight.model import Model
from flyweight.tensors.encoded import EncodedLayer, Layer, input_of


@torch.no_grad()
def input_energy(
    model: Model, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Layer name to mean squares, (rows, columns) of a grouped convolution, else (1, columns).

    Padded tokens are left out where the model reads an ``attention_mask``. Embeddings multiply nothing, and
    layers that do not run are not in the result.

    Raises:
        UnsupportedError: A layer reads values that are not finite.
    """
    sums: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    keep: Tensor | None = None

    def record(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        layer = cast("Layer", module.layer if isinstance(module, EncodedLayer) else module)

        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            x = input_of(args, kwargs)
            if isinstance(module, EncodedLayer) and module.input_factors is not None:
                x = x * module.input_factors
            total, count = _squares(layer, x, keep)
            sums[name] = sums.get(name, torch.zeros_like(total)) + total
            places[name] = places.get(name, 0) + count

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    modules = {name: model.module.get_submodule(name) for name in names}
    handles = [record(name, module) for name, module in modules.items() if not _is_embedding(module)]
    try:
        for batch in batches:
            keep = kept_tokens(batch)
            model.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise UnsupportedError(
                f"layer {name!r} reads NaN or infinite values on calibration data, which say nothing of what "
                "matters: leave it out of the plan, or set importance=uniform"
            )
    return {name: (total / max(places[name], 1)).float() for name, total in sums.items()}


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module.layer if isinstance(module, EncodedLayer) else module, nn.Embedding)


def _squares(layer: Layer, x: Tensor, keep: Tensor | None) -> tuple[Tensor, int]:
    """Sums over everything a layer reads, float64, and the number of places."""
    if isinstance(layer, nn.Linear):
        rows = as_rows(layer, x, keep)
        return rows.double().square().sum(1), rows.shape[1]
    parts = [as_rows(layer, example) for example in torch.split(x, 1)]  # all unfolded are large
    total = torch.stack([rows.double().square().sum(1) for rows in parts]).sum(0)
    if len(total) > 1:  # of groups
        total = total.repeat_interleave(layer.weight.shape[0] // len(total), 0)
    return total, sum(rows.shape[1] for rows in parts)
