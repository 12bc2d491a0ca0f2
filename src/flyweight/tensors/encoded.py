"""Layers whose weight is stored in some encoded form.

An encoder projects a float weight onto what its form can represent, so encoding twice changes nothing. While
a layer is thawed it projects on every forward pass and gradients go straight through (quantization-aware
training); frozen, it holds one encoding, which is what exporters read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast, final, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.errors import UnsupportedError
from flyweight.tensors.activation import straight_through

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


@runtime_checkable
class EncodedWeight(Protocol):
    """A stored weight."""

    @property
    def nbytes(self) -> float:
        """Stored size."""

    @property
    def density(self) -> float:
        """Fraction of weights kept."""

    @property
    def mask(self) -> Tensor | None:
        """Bool, True where a weight is kept; None where all are."""

    def decode(self) -> Tensor:
        """The weight as float32."""


@runtime_checkable
class HasScale(Protocol):
    """A stored weight whose codes have a step."""

    @property
    def scale(self) -> Tensor:
        """(1 or rows, groups), above 0."""


# (float weight, encoding of the stage before) to encoding
Encoder = Callable[[Tensor, EncodedWeight | None], EncodedWeight]


@runtime_checkable
class TrainableEncoder(Protocol):
    """An encoder, a module, through which gradients reach more than the weight."""

    def projected(self, weight: Tensor, before: EncodedWeight | None) -> Tensor:
        """The decoded weight, of the weight's shape, with gradients."""


@final
class EncodedLayer(nn.Module):
    """A layer computing with ``decode(encode(weight))``.

    Attributes:
        layer: The layer with its float weight.
        encoders: Applied in this order; those that are modules belong to the layer as such.
        frozen: The encoding kept by `freeze`, or None.
        input_factors: (columns,) the input is multiplied by first, as smoothing moved their inverse into the
            weight.
        input_quantizer: Applied to the input next, or None.
        input_scale: Scalar, the step of the input's codes where a static quantizer rounds them; else None.
        input_bits: Of those codes.
        integer_bias: Round the bias to the step of the integer sums, input scale times weight scale.
        technique: What made it, for reports.
    """

    input_scale: Tensor | None
    input_factors: Tensor | None

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.encoders: tuple[Encoder, ...] = ()
        self.frozen: EncodedWeight | None = None
        self.input_quantizer: nn.Module | None = None
        self.register_buffer("input_scale", None)
        self.register_buffer("input_factors", None)
        self.input_bits = 8
        self.integer_bias = False
        self.technique = ""
        # nn.TransformerEncoderLayer calls no layer that has no hook: it computes with their weights itself.
        self.register_forward_pre_hook(_no_change)

    def __getattr__(self, name: str) -> Any:
        """What the layer has besides (``in_features``, ``kernel_size``...), for models that read it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer" or name in vars(EncodedLayer) or name.startswith("__"):
                raise  # a property of this class that failed must not become the layer's
            return getattr(self.layer, name)

    @property
    def weight(self) -> Tensor:
        """The weight as it is multiplied by, of the layer's shape, for modules that read it themselves."""
        weight = self._decoded()
        return weight if self.input_factors is None else weight * self.input_factors

    @property
    def bias(self) -> Tensor | None:
        """The bias as it is added, for the same; None where there is none."""
        bias = None if isinstance(self.layer, nn.Embedding) else self.layer.bias
        scale = None if bias is None else self.bias_scale()
        if bias is None or scale is None:
            return bias
        return straight_through(bias, (bias / scale).round() * scale)

    def encoding(self) -> EncodedWeight:
        """The weight as stored.

        Raises:
            ValueError: No encoder was attached.
        """
        if self.frozen is not None:
            return self.frozen
        result = self._encoded_by(self.encoders)
        if result is None:
            raise ValueError("an encoded layer needs an encoder before it is used")
        return result

    def _encoded_by(self, encoders: tuple[Encoder, ...]) -> EncodedWeight | None:
        result: EncodedWeight | None = None
        for encoder in encoders:
            result = encoder(self.layer.weight.detach(), result)
        return result

    def add_encoder(self, encoder: Encoder) -> None:
        """Apply one more encoder, after those there are."""
        if isinstance(encoder, nn.Module):
            self.add_module(f"encoder_{len(self.encoders)}", encoder)
        self.encoders = (*self.encoders, encoder)

    def bias_scale(self) -> Tensor | None:
        """(rows,) or (1,), the step the bias is rounded to; None where it stays float."""
        encoding = self.encoding()
        if not self.integer_bias or self.input_scale is None or not isinstance(encoding, HasScale):
            return None
        return self.input_scale * encoding.scale.reshape(-1)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output; the parameter has torch's name, as a model may call its layers by keyword."""
        x, weight = input, self._decoded()
        if self.input_factors is not None:
            x = x * self.input_factors
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return compute(self.layer, x, weight, self.bias)

    def _decoded(self) -> Tensor:
        weight = self.layer.weight
        if self.frozen is None and self.encoders and isinstance(self.encoders[-1], TrainableEncoder):
            return self.encoders[-1].projected(weight, self._encoded_by(self.encoders[:-1])).to(weight.dtype)
        decoded = self.encoding().decode().to(weight.dtype)
        return decoded if self.frozen is not None else straight_through(weight, decoded)


def input_of(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Tensor:
    """What a layer reads, as hooks see its call."""
    return args[0] if args else kwargs["input"]


def _no_change(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """A hook that leaves the input as it is."""


def compute(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What ``layer`` computes, with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight, layer.padding_idx)
    convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        return convolve(x, weight, bias, layer.stride, 0, layer.dilation, layer.groups)
    return convolve(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def attach(root: nn.Module, name: str, encoder: Encoder, technique: str) -> EncodedLayer:
    """Wrap the layer at ``name`` in place if it is not yet, and add an encoder after those it has.

    A layer with several names is wrapped under all of them.

    Raises:
        UnsupportedError: The module cannot be encoded, see `obstacle`.
    """
    layer = root.get_submodule(name)
    if not isinstance(layer, EncodedLayer):
        reason = obstacle(layer)
        if reason is not None:
            raise UnsupportedError(f"layer {name!r} {reason}")
        wrapped = EncodedLayer(cast("Layer", layer))
        exchange(root, layer, wrapped)
        layer = wrapped
    layer.add_encoder(encoder)
    layer.technique = "+".join(filter(None, (layer.technique, technique)))
    return layer


def obstacle(module: nn.Module) -> str | None:
    """Why a module cannot be encoded, what follows its name in a sentence; None where it can."""
    if type(module) not in LAYERS:
        known = ", ".join(kind.__name__ for kind in LAYERS)
        return f"is a {type(module).__name__}; {known} can be encoded: leave it out"
    if has_own_code(module):
        return (
            "computes more than torch's layer, by a hook, a forward() or a reparametrised weight of its own: "
            "leave it out"
        )
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return (
            "is an embedding with max_norm, with which it changes its weight as it runs: leave it "
            "out, or shorten its rows once and set max_norm to None"
        )
    return None


def has_own_code(module: nn.Module) -> bool:
    """Whether an instance of a class with a weight runs other code than its class: hooks and the like."""
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    replaced = getattr(module.forward, "__func__", None) is not type(module).forward
    return hooked or replaced or "weight" not in module._parameters


def exchange(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in place of ``old`` under every name it has, in place."""
    for name in [name for name, m in root.named_modules(remove_duplicate=False) if m is old]:
        root.set_submodule(name, new)


def encoded_layers(root: nn.Module) -> Iterator[tuple[str, EncodedLayer]]:
    """Qualified name, the first where there are several, and layer of every encoded layer."""
    for name, module in root.named_modules():
        if isinstance(module, EncodedLayer):
            yield name, module


@torch.no_grad()
def freeze(root: nn.Module) -> None:
    """Keep the present encoding of every encoded layer, in place."""
    for _, layer in encoded_layers(root):
        layer.frozen = layer.encoding()


@contextmanager
def encoded_once(module: nn.Module) -> Iterator[nn.Module]:
    """The module, which until the end keeps the encoding it has now if it is an encoded layer."""
    keeps = isinstance(module, EncodedLayer) and module.frozen is None
    if isinstance(module, EncodedLayer) and keeps:
        module.frozen = module.encoding()
    try:
        yield module
    finally:
        if isinstance(module, EncodedLayer) and keeps:
            module.frozen = None


def thaw(root: nn.Module) -> None:
    """Let every encoded layer encode anew on each forward pass, in place."""
    for _, layer in encoded_layers(root):
        layer.frozen = None
