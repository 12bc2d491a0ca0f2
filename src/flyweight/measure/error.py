"""How far a compressed layer is from the original: errors of its weight and of its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import final

import torch
from torch import Tensor, fx, nn

from flyweight.core.analysis import Deviation, LayerErrors
from flyweight.measure.agreement import unfused_attention
from flyweight.measure.graph import capture, check_computes, fold_batch_norms, has_batch_norm, module_of
from flyweight.model import Model
from flyweight.tensors.activation import ChannelQuantizer, DynamicQuantizer, StaticQuantizer
from flyweight.tensors.encoded import EncodedLayer, Layer, compute, encoded_layers, input_of

FOLDING = 1e-3  # relative, as exported files are held to: each fold rounds the weights once more

# name of the layer, which of its calls it is, input, output; what it returns replaces the output
Watch = Callable[[str, int, Tensor, Tensor], Tensor | None]


def sqnr_db(signal: Tensor, approximation: Tensor) -> float | None:
    """10·log10(Σ signal² / Σ (signal - approximation)²); None where either sum is not above 0."""
    found = deviation(signal, approximation)
    return None if found is None else found.sqnr_db


def deviation(exact: Tensor, approximation: Tensor) -> Deviation | None:
    """How far the second is from the first, of the same shape; None where that is not finite."""
    sums = Sums()
    sums.add(exact, approximation)
    return sums.deviation()


def folded(model: Model) -> Model:
    """``model`` with its batch norms folded into the layers before them; itself where it has none.

    Raises:
        UnsupportedError: It cannot be traced, or computes something else then.
    """
    if not has_batch_norm(model.module):
        return model
    graph = capture(model)
    fold_batch_norms(graph)
    check_computes(graph, model, tolerance=FOLDING)
    copy = model.clone()
    copy.module = graph
    return copy


@torch.no_grad()
def weight_sqnr_db(compressed: nn.Module) -> dict[str, float | None]:
    """SQNR of each encoded layer's weight against the float weight that the layer keeps."""
    return {
        name: sqnr_db(layer.layer.weight, layer.encoding().decode())
        for name, layer in encoded_layers(compressed)
    }


@torch.no_grad()
def layer_errors(
    reference: Model, compressed: Model, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, LayerErrors]:
    """Errors of every encoded layer, matched by name.

    One pass over ``batches`` of either model; layers by themselves get what they read in ``reference``.

    Args:
        reference: Float, batch norms folded, and otherwise with the layers of ``compressed``.
        compressed: Its layers are encoded.
        batches: Model inputs.
    """
    layers = {name: layer for name, layer in encoded_layers(compressed.module) if _at(reference, name)}
    comparison = _Comparison(layers, input_quantizers(compressed.module))
    for batch in batches:
        comparison.wanted = {name: [] for name in layers}
        watched(reference, layers, batch, comparison.float_call)
        watched(compressed, layers, batch, comparison.quantized_call)
    return {
        name: LayerErrors(
            weight=deviation(float_weight(reference, name, layer), layer.encoding().decode()),
            output_alone=comparison.alone[name].deviation(),
            output=comparison.together[name].deviation(),
        )
        for name, layer in layers.items()
    }


def float_weight(reference: Model, name: str, layer: EncodedLayer) -> Tensor:
    """What the layer's encoding stands for: the weight of ``reference`` as the layer multiplies by it.

    A layer that reads the codes of its own input quantizer has other units: its own weight is taken then.
    """
    own = layer.layer.weight.detach()
    original = _at(reference, name)
    weight = None if original is None else original.weight
    if isinstance(layer.input_quantizer, ChannelQuantizer) or weight is None or weight.shape != own.shape:
        return own
    return weight.detach() if layer.input_factors is None else weight.detach() / layer.input_factors


def quantized_output(
    layer: EncodedLayer,
    x: Tensor,
    quantizers: Sequence[nn.Module | None] | None,
    call: int = 0,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """What the layer makes of the float model's input, that input rounded as the layer reads it.

    Args:
        layer: Quantized.
        x: What it reads in the float model.
        quantizers: What rounds its input, call by call, from `input_quantizers`.
        call: Which call of the layer it is.
        weight: Instead of its own, with ``bias`` instead of its own.
        bias: See ``weight``.
    """
    before = quantizers[call] if quantizers and call < len(quantizers) else None
    read = x if before is None else before(x)
    if weight is None:
        return layer(read)  # type: ignore[no-any-return]  # nn.Module calls are untyped
    if layer.input_factors is not None:
        read = read * layer.input_factors
    if layer.input_quantizer is not None:
        read = layer.input_quantizer(read)
    return compute(layer.layer, read, weight, bias)


def input_quantizers(module: nn.Module) -> dict[str, list[nn.Module | None]]:
    """What rounds the input of each encoded layer in the graph, call by call; nothing for other modules."""
    found: dict[str, list[nn.Module | None]] = {}
    if not isinstance(module, fx.GraphModule):
        return found
    for node in module.graph.nodes:
        if isinstance(module_of(module, node), EncodedLayer):
            source = node.all_input_nodes[0]
            before = module_of(module, source)
            rounds = isinstance(before, StaticQuantizer | DynamicQuantizer)
            found.setdefault(str(node.target), []).append(before if rounds else None)
    return found


@torch.no_grad()
def watched(
    model: Model, names: Sequence[str] | Mapping[str, object], batch: Mapping[str, Tensor], watch: Watch
) -> tuple[Tensor, ...]:
    """The model's outputs while ``watch`` sees every call of the named layers."""
    calls = dict.fromkeys(names, 0)

    def hook_of(name: str) -> Callable[..., Tensor | None]:
        def hook(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], output: Tensor
        ) -> Tensor | None:
            calls[name] += 1
            return watch(name, calls[name] - 1, input_of(args, kwargs), output)

        return hook

    with ExitStack() as stack:
        stack.enter_context(unfused_attention())
        for name in names:
            layer = model.module.get_submodule(name)
            stack.callback(layer.register_forward_hook(hook_of(name), with_kwargs=True).remove)
        return model.outputs(batch)


@final
class Sums:
    """Sums over pairs of tensors, from which their `Deviation` follows."""

    def __init__(self) -> None:
        self._count, self._max = 0, 0.0
        self._power = self._noise = self._other = self._product = 0.0

    def add(self, exact: Tensor, approximation: Tensor) -> None:
        """Count two tensors of one shape; nothing where their shapes differ."""
        if exact.shape != approximation.shape or not exact.numel():
            return
        signal, other = exact.detach().double(), approximation.detach().double()
        difference = signal - other
        self._count += signal.numel()
        self._max = max(self._max, float(difference.abs().max()))
        self._power += float(signal.square().sum())
        self._other += float(other.square().sum())
        self._noise += float(difference.square().sum())
        self._product += float((signal * other).sum())

    def deviation(self) -> Deviation | None:
        """Of all that was counted; None where that is nothing, or not finite."""
        total = self._power + self._noise + self._other + self._product
        if not self._count or not abs(total) < float("inf"):
            return None
        return Deviation(
            mse=self._noise / self._count,
            max_abs=self._max,
            relative=self._noise**0.5 / self._power**0.5 if self._power > 0 else None,
            sqnr_db=self._sqnr_db(),
            cosine=self._cosine(),
        )

    def _sqnr_db(self) -> float | None:
        if not (self._power > 0 and self._noise > 0):
            return None
        return 10 * (math.log10(self._power) - math.log10(self._noise))

    def _cosine(self) -> float | None:
        norms = self._power**0.5 * self._other**0.5
        return min(max(self._product / norms, -1.0), 1.0) if norms > 0 else None


@final
class _Comparison:
    """Sums of each layer's errors, filled by a pass of the float model and one of the quantized in turn."""

    def __init__(
        self, layers: Mapping[str, EncodedLayer], readers: Mapping[str, Sequence[nn.Module | None]]
    ) -> None:
        self._layers, self._readers = layers, readers
        self.alone = {name: Sums() for name in layers}
        self.together = {name: Sums() for name in layers}
        self.wanted: dict[str, list[Tensor]] = {}

    def float_call(self, name: str, call: int, x: Tensor, y: Tensor) -> None:
        self.alone[name].add(y, quantized_output(self._layers[name], x, self._readers.get(name), call))
        self.wanted[name].append(y.clone())  # an activation may work in place

    def quantized_call(self, name: str, call: int, x: Tensor, y: Tensor) -> None:
        if call < len(self.wanted[name]):
            self.together[name].add(self.wanted[name][call], y)


def _at(model: Model, name: str) -> EncodedLayer | Layer | None:
    """The layer of that name, or None."""
    module = dict(model.module.named_modules(remove_duplicate=False)).get(name)
    return module if isinstance(module, EncodedLayer | Layer) else None
