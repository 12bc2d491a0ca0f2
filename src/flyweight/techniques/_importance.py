"""How much the error of each weight counts: all alike, or by the energy of what it is multiplied with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flyweight.core.plan import Decision
from flyweight.errors import InputError
from flyweight.measure.input_energy import input_energy
from flyweight.tensors.encoded import EncodedLayer

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
    energies = input_energy(model, decision.layers, batches)
    owners: dict[int, list[str]] = {}
    for name in decision.layers:
        owners.setdefault(id(_layer_at(model.module, name).weight), []).append(name)
    found: dict[str, Tensor | None] = {}
    for names in owners.values():
        embedded = any(isinstance(_layer_at(model.module, name), nn.Embedding) for name in names)
        known = [energies[name] for name in names if name in energies]
        shared = None if embedded or not known else torch.stack(known).sum(0)
        found |= dict.fromkeys(names, shared)
    return found


def _layer_at(root: nn.Module, name: str) -> nn.Module:
    module = root.get_submodule(name)
    return module.layer if isinstance(module, EncodedLayer) else module
