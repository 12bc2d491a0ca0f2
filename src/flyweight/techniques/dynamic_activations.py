"""Inputs of linear layers rounded to 2 to 8 bits, on ranges found at run time, under weights of any form.

What an earlier stage has made of the weights stays: 4-bit weights with this are W4A8. Fewer than 8 bits run
in PyTorch alone.

Source: Krishnamoorthi 2018, arXiv:1806.08342 (one range); Yao et al. 2022, arXiv:2206.01861 (a range a
token).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast, final

from torch import Tensor

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.techniques import _settings
from flyweight.techniques._activations import (
    check_activation_bits,
    check_multiplies_rows,
    check_reads_floats,
)
from flyweight.tensors.activation import ACTIVATION_GRANULARITIES, ActivationGranularity, DynamicQuantizer
from flyweight.tensors.plain import attach_plain

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class DynamicActivations:
    """See the module's docstring.

    Settings: ``activation_bits`` 2..8, of what layers read; ``activation_granularity``: ``tensor`` (one
    range) or ``token`` (one for each vector along the last axis).
    """

    name = "dynamic_activations"
    stage = Stage.ACTIVATIONS
    defaults: Mapping[str, Scalar] = {"activation_bits": 8, "activation_granularity": "tensor"}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every linear layer, at 8 bits."""
        for layer in profile.layers:
            if layer.op == "linear":
                yield Decision(self.name, (layer.name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range, UnsupportedError for other than linear layers."""
        bits = check_activation_bits(self._checked(decision))
        for name in decision.layers:
            layer = profile.by_name[name]
            check_multiplies_rows(layer, instead="static_activations")
            check_reads_floats(layer, self.name)
            profile = profile.with_layer(replace(layer, activation_bits=bits, activation_mode="dynamic"))
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; needs no batches."""
        settings = self._checked(decision)
        bits, granularity = check_activation_bits(settings), settings["activation_granularity"]
        for name in decision.layers:
            layer = attach_plain(model.module, name, self.name)
            layer.input_quantizer = DynamicQuantizer(cast("ActivationGranularity", granularity), bits)

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        check_activation_bits(settings)
        _settings.choice(settings, "activation_granularity", ACTIVATION_GRANULARITIES)
        return settings
