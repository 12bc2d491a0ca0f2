"""Dynamic W8A8: int8 weights per channel, uint8 activations whose range is found at run time.

Linear layers compute on integers; embeddings are stored as int8 and dequantized after the lookup;
convolutions stay float, because every CPU runtime measured computes them slower this way.

Source: Krishnamoorthi 2018, arXiv:1806.08342; for the inputs see `flyweight.techniques._dynamic_inputs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.techniques import _settings
from flyweight.techniques._activations import check_multiplies_rows
from flyweight.techniques._affine import encoder_for, form_of, predicted
from flyweight.techniques._dynamic_inputs import InputForm, choose
from flyweight.tensors.activation import ACTIVATION_GRANULARITIES, DynamicQuantizer
from flyweight.tensors.encoded import EncodedLayer, attach
from flyweight.tensors.ranges import RANGE_METHODS

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class DynamicInt8:
    """See the module's docstring.

    Settings: ``range_method`` of the weights; ``activation_granularity`` of the inputs: ``tensor`` (one
    range), ``token`` (one a token), or ``auto``, which also smooths, decided for each layer on calibration
    examples.
    """

    name = "dynamic_int8"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {"bits": 8, "range_method": "minmax", "activation_granularity": "auto"}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every linear layer and embedding."""
        for layer in profile.layers:
            if layer.op in {"linear", "embedding"}:
                yield Decision(self.name, (layer.name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range, UnsupportedError for a convolution."""
        form = form_of(self._checked(decision))
        for name in decision.layers:
            layer = profile.by_name[name]
            check_multiplies_rows(layer, instead="static_int8")
            after = predicted(layer, form)
            if layer.op == "linear":
                after = replace(after, activation_bits=8, activation_mode="dynamic")
            profile = profile.with_layer(after)
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; without batches ``auto`` is ``tensor``."""
        settings = self._checked(decision)
        form = form_of(settings)
        found = {name: _inner(model.module.get_submodule(name)) for name in decision.layers}
        linear = {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear)}
        inputs = _input_forms(model, linear, batches, settings)
        for name in decision.layers:
            layer = attach(model.module, name, encoder_for(model.module, name, form), self.name)
            if name in inputs:
                layer.input_quantizer = DynamicQuantizer(inputs[name].granularity)
                _smooth(layer, inputs[name].smoothing)

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        if settings["bits"] != 8:
            raise ValueError(
                f"dynamic_int8 stores 8 bits, got bits={settings['bits']}; use weight_only for fewer"
            )
        _settings.choice(settings, "range_method", RANGE_METHODS)
        _settings.choice(settings, "activation_granularity", ("auto", *ACTIVATION_GRANULARITIES))
        return settings


def _input_forms(
    model: Model,
    linear: Mapping[str, nn.Linear],
    batches: Sequence[Mapping[str, Tensor]],
    settings: Mapping[str, Scalar],
) -> dict[str, InputForm]:
    wanted = settings["activation_granularity"]
    if wanted == "auto":
        # Smoothing a shared weight would change its other owner too.
        own = Counter(id(p) for _, p in model.module.named_parameters(remove_duplicate=False))
        shared = {key for key, owners in own.items() if owners > 1}
        free = {name: layer for name, layer in linear.items() if id(layer.weight) not in shared}
        fixed = {name: InputForm("tensor") for name in linear if name not in free}
        return fixed | choose(model, free, batches, form_of(settings))
    return dict.fromkeys(linear, InputForm("token" if wanted == "token" else "tensor"))


def _inner(module: nn.Module) -> nn.Module:
    return module.layer if isinstance(module, EncodedLayer) else module


@torch.no_grad()
def _smooth(layer: EncodedLayer, factors: Tensor | None) -> None:
    """Move the factors from the input into the weight, in place."""
    if factors is not None:
        layer.layer.weight.mul_(factors)
        layer.input_factors = 1 / factors
