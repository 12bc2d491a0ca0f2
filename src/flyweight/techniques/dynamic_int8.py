"""Dynamic W8A8: int8 weights per channel, uint8 activations whose range is found at run time.

Linear layers compute on integers; embeddings are stored as int8 and dequantized after the lookup; convolutions stay
float, because every CPU runtime measured computes them slower this way.

Source: Krishnamoorthi 2018, arXiv:1806.08342 (weights); Yao et al. 2022, arXiv:2206.01861, section 4 (one range a token).
Differs: whether a layer gets one range or one a token is decided for each layer from its own output error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import UnsupportedError
from flyweight.techniques import _settings
from flyweight.techniques._affine import affine_encoder, form_of, predicted
from flyweight.tensors.activation import ActivationGranularity, DynamicQuantizer
from flyweight.tensors.encoded import EncodedLayer, attach, compute
from flyweight.tensors.ranges import RANGE_METHODS

if TYPE_CHECKING:
    from flyweight.model import Model

ACTIVATION_GRANULARITIES = ("auto", "tensor", "token")
# "auto" pays for one range a token where that removes most of a layer's error and the layer narrows: the extra passes
# run over its output, which is then the smaller side.
LEAST_GAIN_DB = 6.0
PROBE_BATCHES = 8


@final
class DynamicInt8:
    """See the module's docstring.

    Settings: ``activation_granularity`` tensor, token or auto; ``range_method`` of the weights.
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
            if layer.op not in {"linear", "embedding"}:
                raise UnsupportedError(
                    f"layer {name!r} is a {layer.op}: dynamic int8 convolutions are slower than float on every CPU "
                    "runtime measured; use static_int8"
                )
            after = predicted(layer, form)
            if layer.op == "linear":
                after = replace(after, activation_bits=8, activation_mode="dynamic")
            profile = profile.with_layer(after)
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; ``auto`` looks at a few of the batches."""
        settings = self._checked(decision)
        encoder = affine_encoder(form_of(settings))
        wanted = settings["activation_granularity"]
        layers = {name: attach(model.module, name, encoder, self.name) for name in decision.layers}
        linear = {name: layer for name, layer in layers.items() if isinstance(layer.layer, nn.Linear)}
        by_token = (
            _better_by_token(model, linear, batches[:PROBE_BATCHES]) if wanted == "auto" else frozenset()
        )
        for name, layer in linear.items():
            granularity: ActivationGranularity = (
                "token" if wanted == "token" or name in by_token else "tensor"
            )
            layer.input_quantizer = DynamicQuantizer(granularity)

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        if settings["bits"] != 8:
            raise ValueError(
                f"dynamic_int8 stores 8 bits, got bits={settings['bits']}; use weight_only for fewer"
            )
        _settings.choice(settings, "range_method", RANGE_METHODS)
        _settings.choice(settings, "activation_granularity", ACTIVATION_GRANULARITIES)
        return settings


@torch.no_grad()
def _better_by_token(
    model: Model, layers: Mapping[str, EncodedLayer], batches: Sequence[Mapping[str, Tensor]]
) -> frozenset[str]:
    """Names of narrowing layers whose output error falls by `LEAST_GAIN_DB` or more with one range a token.

    Each example is shown by itself: a range over a batch would be coarser than the device's, which runs one at a time.
    """
    errors: dict[str, Tensor] = {}

    def probe(name: str, layer: EncodedLayer) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            errors[name] = errors.get(name, torch.zeros(2, dtype=torch.float64)) + _squared_errors(
                layer, args[0]
            )

        return layer.register_forward_hook(hook)

    narrowing = {n: layer for n, layer in layers.items() if layer.weight.shape[0] < layer.weight.shape[1]}
    handles = [probe(name, layer) for name, layer in narrowing.items()]
    try:
        for batch in batches:
            model.outputs({name: value[:1] for name, value in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    least_ratio = 10 ** (LEAST_GAIN_DB / 10)
    return frozenset(
        name for name, (by_tensor, by_token) in errors.items() if by_tensor > least_ratio * by_token
    )


def _squared_errors(layer: EncodedLayer, x: Tensor) -> Tensor:
    """(by tensor, by token) squared output error that rounding the input causes."""
    weight = layer.encoding().decode()
    return torch.stack(
        [
            compute(layer.layer, DynamicQuantizer(g)(x) - x, weight, None).double().square().sum()
            for g in ("tensor", "token")
        ]
    )
