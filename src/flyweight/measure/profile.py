"""Run a model once and record each weighted layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from flyweight.core.layer import FLOAT_BITS, LayerProfile, ModelProfile, Operation
from flyweight.measure.float_modules import float_modules
from flyweight.measure.forms import in_form
from flyweight.measure.used import Reach
from flyweight.model import Model
from flyweight.tensors.activation import DynamicQuantizer
from flyweight.tensors.encoded import EncodedLayer, Layer, encoded_layers, input_of, obstacle
from flyweight.tensors.plain import PlainWeight

_OPERATIONS: Mapping[type[nn.Module], Operation] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Embedding: "embedding",
}


@torch.no_grad()
def profile(model: Model) -> ModelProfile:
    """Profile of ``model`` from one forward pass of its example inputs (batch 1).

    A layer that runs twice is recorded once, with the work of both; one whose output nothing uses is only
    named, as no file holds it. Weighted layers of other kinds,
    subclasses of the known ones, layers with hooks and embeddings with ``max_norm`` included, are float
    modules: no technique touches them.
    """
    found: dict[str, LayerProfile] = {}
    reach = Reach(model)
    inside = {id(m.layer) for m in model.module.modules() if isinstance(m, EncodedLayer)}
    handles = []

    def record(name: str, module: EncodedLayer | Layer) -> torch.utils.hooks.RemovableHandle:
        def hook(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor
        ) -> None:
            layer = _profile_of(name, module, input_of(args, kwargs), output)
            before = found.get(name)
            found[name] = layer if before is None else replace(before, macs=before.macs + layer.macs)
            reach.wrote(name, output)

        return module.register_forward_hook(hook, with_kwargs=True)

    for name, module in model.module.named_modules():
        takes = id(module) not in inside and obstacle(module) is None
        if isinstance(module, EncodedLayer) or takes:
            handles.append(record(name, cast("EncodedLayer | Layer", module)))
    try:
        with reach:
            outputs = model.outputs()
    finally:
        for handle in handles:
            handle.remove()
    used = reach.used(outputs)
    modules = {name: cast("EncodedLayer | Layer", model.module.get_submodule(name)) for name in found}
    taken = {name: module for name, module in modules.items() if name in used}
    return ModelProfile(
        model=model.name,
        layers=_tied([found[name] for name in taken], taken),
        float_modules=float_modules(model, list(modules.values())),
        other_bytes=_other_bytes(modules, used, model) + _smoothing_bytes(model.module),
        unused=tuple(name for name in found if name not in used),
    )


def _tied(
    layers: Sequence[LayerProfile], modules: Mapping[str, EncodedLayer | Layer]
) -> tuple[LayerProfile, ...]:
    """The layers, those that share weight and stored form with an earlier one tied to it."""
    owners: dict[int, str] = {}
    result = []
    for layer in layers:
        owner = owners.setdefault(id(_layer_of(modules[layer.name]).weight), layer.name)
        tied = owner != layer.name and stored_alike(modules[owner], modules[layer.name])
        result.append(replace(layer, tied_to=owner if tied else None))
    return tuple(result)


def parameter_count(model: Model) -> int:
    """Numbers in weights, biases and norms, tied ones once; running statistics are not counted."""
    return sum(p.numel() for p in model.module.parameters())


def stored_alike(one: EncodedLayer | Layer, other: EncodedLayer | Layer) -> bool:
    """Whether two layers that share a weight share what is stored of it."""
    first, second = (m.encoding() if isinstance(m, EncodedLayer) else None for m in (one, other))
    first, second = (None if isinstance(stored, PlainWeight) else stored for stored in (first, second))
    if first is None or second is None:
        return first is second
    same_size = abs(first.nbytes - second.nbytes) < 1
    return type(first) is type(second) and same_size and torch.equal(first.decode(), second.decode())


def _layer_of(module: EncodedLayer | Layer) -> Layer:
    return module.layer if isinstance(module, EncodedLayer) else module


def _profile_of(name: str, module: EncodedLayer | Layer, x: Tensor, output: Tensor) -> LayerProfile:
    bare = unencoded(name, _layer_of(module))
    profile = replace(
        bare,
        macs=0 if bare.op == "embedding" else output.numel() * bare.columns,
        input_elements=x.numel(),
        output_elements=output.numel(),
    )
    return with_encoding(profile, module) if isinstance(module, EncodedLayer) else profile


def unencoded(name: str, layer: Layer) -> LayerProfile:
    """A layer before it runs: its kind and size."""
    rows, columns = layer.weight.shape[0], layer.weight[0].numel()
    return LayerProfile(
        name=name,
        op=_OPERATIONS[type(layer)],
        rows=rows,
        columns=columns,
        macs=0,
        input_elements=0,
        output_elements=0,
    )


def with_encoding(profile: LayerProfile, module: EncodedLayer) -> LayerProfile:
    """With what is stored of the weight, and how its input is rounded."""
    encoding = module.encoding()
    kept = max(profile.weights * encoding.density, 1.0)
    profile = replace(profile, weight_bits=encoding.nbytes * 8 / kept, density=encoding.density)
    profile = in_form(encoding, profile)
    quantizer = module.input_quantizer
    if isinstance(quantizer, DynamicQuantizer):
        return replace(
            profile,
            activation_bits=quantizer.bits,
            activation_mode="dynamic",
            activation_granularity=quantizer.granularity,
        )
    if module.input_scale is not None:
        return replace(profile, activation_bits=module.input_bits, activation_mode="static")
    return profile


def _other_bytes(modules: Mapping[str, EncodedLayer | Layer], used: Collection[str], model: Model) -> float:
    """Of all parameters but weights of layers, and but those of unused layers alone."""
    weights = {id(_layer_of(module).weight) for module in modules.values()}
    idle = {id(_layer_of(module)) for name, module in modules.items() if name not in used}
    kept = {
        id(p): p.numel()
        for m in model.module.modules()
        if id(m) not in idle
        for p in m.parameters(recurse=False)
        if id(p) not in weights
    }
    return sum(kept.values()) * FLOAT_BITS / 8


def _smoothing_bytes(root: nn.Module) -> float:
    """Of the factors that inputs are multiplied by, once for layers that read the same tensor."""
    found = [layer.input_factors for _, layer in encoded_layers(root) if layer.input_factors is not None]
    distinct = {tuple(factors.tolist()) for factors in found}
    return sum(map(len, distinct)) * FLOAT_BITS / 8
