"""How much the error of each weight counts: all alike, or by the energy of what it is multiplied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flyweight.core.plan import Decision
from flyweight.errors import InputError
from flyweight.measure.input_statistics import input_statistics
from flyweight.tensors.encoded import EncodedLayer
from flyweight.tensors.ranges import InputStatistics

if TYPE_CHECKING:
    from flyweight.model import Model

IMPORTANCES = ("uniform", "inputs")


def importance_of(
    model: Model, decision: Decision, importance: str, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor | None]:
    """Importance of each layer's weights, (1 or rows, columns); None where all count alike.

    Layers that share a weight get the same, so that it is stored once. Those of an embedding count alike:
    which of its rows calibration data look up says little of what others will.

    Raises:
        InputError: It is ``inputs``, and there are no calibration batches.
        UnsupportedError: A layer reads values that are not finite.
    """
    if importance == "uniform":
        return dict.fromkeys(decision.layers)
    if not batches:
        raise InputError(
            f"{decision.technique} needs calibration data to know what matters: give --data, or set "
            "importance=uniform"
        )
    found = statistics_of(model, decision.layers, batches)
    return {name: None if own is None else own.energy for name, own in found.items()}


def statistics_of(
    model: Model, layers: Sequence[str], batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, InputStatistics | None]:
    """What is known of the inputs of each layer; the same for layers that share a weight.

    Raises:
        UnsupportedError: A layer reads values that are not finite.
    """
    seen = input_statistics(model, layers, batches)
    owners: dict[int, list[str]] = {}
    for name in layers:
        owners.setdefault(id(_layer_at(model.module, name).weight), []).append(name)
    found: dict[str, InputStatistics | None] = {}
    for names in owners.values():
        embedded = any(isinstance(_layer_at(model.module, name), nn.Embedding) for name in names)
        known = [seen[name] for name in names if name in seen]
        found |= dict.fromkeys(names, None if embedded or not known else _joined(known))
    return found


def _joined(known: Sequence[InputStatistics]) -> InputStatistics:
    """Of several inputs of one weight, whose means say nothing together."""
    if len(known) == 1:
        return known[0]
    return InputStatistics(torch.stack([own.energy for own in known]).sum(0))


def _layer_at(root: nn.Module, name: str) -> nn.Module:
    module = root.get_submodule(name)
    return module.layer if isinstance(module, EncodedLayer) else module
