"""How much each weight of a layer matters to its output: means and mean squares of what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from flyweight.errors import UnsupportedError
from flyweight.measure.curvature import as_rows, kept_tokens
from flyweight.model import Model
from flyweight.tensors.encoded import EncodedLayer, Layer, input_of
from flyweight.tensors.ranges import InputStatistics


@torch.no_grad()
def input_statistics(
    model: Model, names: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, InputStatistics]:
    """Layer name to means and mean squares, (rows, columns) of a grouped convolution, else (1, columns).

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
            total, count = _sums(layer, x, keep)
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
    means = {name: (total / max(places[name], 1)).float() for name, total in sums.items()}
    return {name: InputStatistics(energy=both[0], mean=both[1]) for name, both in means.items()}


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module.layer if isinstance(module, EncodedLayer) else module, nn.Embedding)


def _sums(layer: Layer, x: Tensor, keep: Tensor | None) -> tuple[Tensor, int]:
    """Sums of squares, and of values, over everything a layer reads, float64, and the number of places."""
    # all examples of a convolution unfolded at once are large
    examples = (x,) if isinstance(layer, nn.Linear) else torch.split(x, 1)
    totals, places = [], 0
    for example in examples:
        rows = as_rows(layer, example, keep if isinstance(layer, nn.Linear) else None).double()
        totals.append(torch.stack([rows.square().sum(1), rows.sum(1)]))
        places += rows.shape[1]
    total = torch.stack(totals).sum(0)
    if total.shape[1] > 1:  # of groups
        total = total.repeat_interleave(layer.weight.shape[0] // total.shape[1], 1)
    return total, places
