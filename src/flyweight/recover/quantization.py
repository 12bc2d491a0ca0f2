"""A quantized model made ready to be trained, and made whole again.

While it is trained, its layers round their weights on every pass, on grids that are learned, and gradients
pass straight through (quantization-aware training); or codes stay, and only what they stand for is learned.

Source: Jacob et al. 2017, arXiv:1712.05877, section 3; Esser et al. 2020, arXiv:1902.08153; Chen et al. 2024,
arXiv:2407.11062, section 3.3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor, fx, nn

from flyweight.measure.error import input_quantizers
from flyweight.model import Model
from flyweight.recover.batch_norms import put_back, take_out
from flyweight.recover.grids import keep, multiply_rows, replace_last
from flyweight.recover.kept_codes import KeptCodes
from flyweight.recover.optimizer import ParameterGroup
from flyweight.recover.settings import TrainingSettings
from flyweight.recover.steps import TrainedStep
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.binary import BinaryEncoder, BinaryWeight
from flyweight.tensors.codebook import CodebookWeight
from flyweight.tensors.encoded import (
    EncodedLayer,
    EncodedWeight,
    Encoder,
    encoded_layers,
    exchange,
    freeze,
    thaw,
)

LARGEST_BIAS_CODE = 2.0**30  # half of int32: the rest is for the products


@runtime_checkable
class LearnsGrid(Protocol):
    """An encoder whose scales, or other values that codes stand for, can become parameters."""

    def learn_grid(self, weight: Tensor, before: EncodedWeight | None = None) -> tuple[nn.Parameter, ...]:
        """Make them parameters that start where ``weight`` puts them, and return them."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Trainable:
    """A quantized model that is being trained.

    Attributes:
        model: Its module is changed by the training, and by `finished`.
        groups: What is trained.
        norms: Batch norms that were put back, by the layer before them.
        integer_biases: Layers whose biases are rounded afterwards.
    """

    model: Model
    groups: tuple[ParameterGroup, ...]
    norms: Mapping[str, nn.Module] = field(default_factory=dict)
    integer_biases: tuple[str, ...] = ()

    @property
    def what(self) -> tuple[str, ...]:
        """What is trained, in words."""
        return tuple(dict.fromkeys(group.what for group in self.groups if group.parameters))


def trainable(
    model: Model,
    settings: TrainingSettings,
    *,
    batches: Sequence[Mapping[str, Tensor]] = (),
    had_norms: Collection[str] = (),
) -> Trainable:
    """Make the model's module ready to be trained, in place; it computes what it computed.

    Args:
        model: From `flyweight.apply.apply`.
        settings: ``tune`` and ``batch_norms`` are used; ``optimizer`` is settled.
        batches: Calibration batches, input name to (batch, ...).
        had_norms: Layers that a batch norm followed before it was folded.
    """
    module = model.module
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    rounded = tuple(name for name, layer in encoded_layers(module) if layer.integer_bias)
    for name in rounded:
        _layer(module, name).integer_bias = False
    norms: dict[str, nn.Module] = {}
    if settings.batch_norms == "kept" and isinstance(module, fx.GraphModule):
        norms = put_back(module, had_norms, batches)
    grids = _keep_codes(module) if settings.tune == "scales" else _learn_grids(module)
    relative = settings.optimizer == "adamw"  # its steps have one size, whatever the gradient's
    groups = [
        *_weights_and_others(module, settings.tune == "all"),
        *(_own_group("scales", p, relative=relative) for p in grids),
        *(_own_group("steps of activations", p, relative=relative) for p in _train_steps(module)),
    ]
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(True)
    return Trainable(model=model, groups=tuple(groups), norms=norms, integer_biases=rounded)


@torch.no_grad()
def finished(trained: Trainable) -> None:
    """Fold the norms, fix what was learned and freeze the layers, in place."""
    module = trained.model.module
    factors: dict[str, Tensor] = {}
    if isinstance(module, fx.GraphModule):
        factors = take_out(module, trained.norms)
        _fix_steps(module)
    for name, layer in encoded_layers(module):
        if name in factors:
            multiply_rows(layer, factors[name])
        else:
            keep(layer, layer.encoding())
    for name in trained.integer_biases:
        layer = _layer(module, name)
        layer.integer_bias = True
        _widen_steps_to_bias(layer)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    freeze(module)


def _layer(module: nn.Module, name: str) -> EncodedLayer:
    layer = module.get_submodule(name)
    assert isinstance(layer, EncodedLayer)
    return layer


def _before_last(layer: EncodedLayer) -> EncodedWeight | None:
    """What the encoders but the last make of the weight."""
    result: EncodedWeight | None = None
    for encoder in layer.encoders[:-1]:
        result = encoder(layer.layer.weight.detach(), result)
    return result


def _learn_grids(module: nn.Module) -> list[nn.Parameter]:
    """Thaw, with grids that are learned where encoders can; layers that share a weight share its grid."""
    thaw(module)
    learned: dict[tuple[int, str], Encoder] = {}
    parameters: list[nn.Parameter] = []
    for _, layer in encoded_layers(module):
        encoder = layer.encoders[-1]
        if not isinstance(encoder, LearnsGrid) or isinstance(encoder, BinaryEncoder):
            continue
        key = id(layer.layer.weight), repr(getattr(encoder, "form", None))
        if key in learned:
            replace_last(layer, learned[key])
            continue
        parameters += encoder.learn_grid(layer.layer.weight.detach(), _before_last(layer))
        learned[key] = encoder
    return parameters


def _keep_codes(module: nn.Module) -> list[nn.Parameter]:
    """Keep every code, and learn what codes stand for; forms that have nothing of the kind stay frozen."""
    kept: dict[int, KeptCodes] = {}
    for _, layer in encoded_layers(module):
        stored = layer.encoding()
        if not isinstance(stored, AffineWeight | BinaryWeight | CodebookWeight):
            continue
        if isinstance(stored, BinaryWeight) and not stored.form.scaled:
            continue
        encoder = kept.setdefault(id(layer.layer.weight), KeptCodes(stored))
        replace_last(layer, encoder)
        layer.frozen = None
    return [p for encoder in kept.values() for p in encoder.parameters()]


def _train_steps(module: nn.Module) -> list[nn.Parameter]:
    """Exchange static quantizers for ones that train, in place; the steps that are learned."""
    found = [m for m in module.modules() if isinstance(m, StaticQuantizer)]
    trained = {id(old): TrainedStep(old, learned=True) for old in found}
    for old in found:
        exchange(module, old, trained[id(old)])
    return [p for step in trained.values() for p in step.parameters()]


def _fix_steps(graph: fx.GraphModule) -> None:
    for step in [m for m in graph.modules() if isinstance(m, TrainedStep)]:
        exchange(graph, step, step.fixed())
    for name, quantizers in input_quantizers(graph).items():
        layer, read = _layer(graph, name), quantizers[0]
        if layer.input_scale is not None and isinstance(read, StaticQuantizer):
            layer.input_scale = read.scale.clone()


def _weights_and_others(module: nn.Module, weights: bool) -> Iterable[ParameterGroup]:
    """Parameters of one axis (norms, biases), and the others if ``weights`` are trained."""
    modules = [e for _, layer in encoded_layers(module) for e in layer.encoders if isinstance(e, nn.Module)]
    encoders = {id(p) for encoder in modules for p in encoder.parameters()}
    own = [p for p in module.parameters() if id(p) not in encoders]
    if weights:
        yield ParameterGroup(what="weights", parameters=[p for p in own if p.dim() > 1], decays=True)
    yield ParameterGroup(what="biases and norms", parameters=[p for p in own if p.dim() == 1])


def _own_group(what: str, parameter: nn.Parameter, *, relative: bool) -> ParameterGroup:
    """A group of one parameter, moved by parts of its own size if ``relative``."""
    size = float(parameter.detach().abs().mean()) if relative else 1.0
    return ParameterGroup(what=what, parameters=(parameter,), rate=size or 1.0)


def _widen_steps_to_bias(layer: EncodedLayer) -> None:
    """Make the steps of rows so large, in place, that their biases are whole numbers of sums."""
    encoder, bias = layer.encoders[-1], getattr(layer.layer, "bias", None)
    if not isinstance(encoder, AffineEncoder) or bias is None or layer.input_scale is None:
        return
    assert encoder.scale is not None
    least = bias.detach().abs() / LARGEST_BIAS_CODE / layer.input_scale
    rows = encoder.scale.reshape(-1)
    needed = torch.maximum(rows, least if len(rows) > 1 else least.max())
    if not torch.equal(needed, rows):
        layer.layer.weight.copy_(layer.encoding().decode())
        encoder.scale = needed.reshape(encoder.scale.shape)
