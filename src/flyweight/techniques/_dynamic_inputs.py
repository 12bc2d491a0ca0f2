"""How each linear layer's input is quantized at run time: as it is, smoothed, or with one range a token.

A few channels or tokens of a transformer are far larger than the rest and coarsen the codes of all others.
Smoothing moves part of a large channel's scale into the weights; it costs one multiplication that all readers
of the same tensor share. A range a token costs several passes over the layer's output, so only layers that
narrow may have it.

Source: Xiao et al. 2022, arXiv:2211.10438, equation 4 (smoothing); Yao et al. 2022, arXiv:2206.01861 (a range
a token).
Differs: the choice is made for each tensor from the output error measured on a few calibration examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from flyweight.errors import UnsupportedError
from flyweight.model import Model
from flyweight.tensors.activation import ActivationGranularity, DynamicQuantizer
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.encoded import input_of

PROBE_EXAMPLES = 8
# Alpha of the source: 0 leaves the activations as they are, 1 makes all channels equal.
SMOOTHING_STRENGTH = 0.5
# A channel that is rare among the probed examples is scaled up by at most 8; smaller factors gained nothing.
LEAST_FACTOR, LARGEST_FACTOR = 1 / 8, 64.0
LEAST_SMOOTHING_GAIN_DB = 3.0
LEAST_TOKEN_GAIN_DB = 6.0


@final
@dataclass(frozen=True, eq=False)
class InputForm:
    """How one layer's input is quantized.

    Attributes:
        granularity: What shares one range.
        smoothing: (columns,) factors that the weights take and the input loses; None where there are none.
    """

    granularity: ActivationGranularity
    smoothing: Tensor | None = None


@final
@dataclass(frozen=True, eq=False)
class _Group:
    """Layers that read the same tensor, and what they read: (tokens, columns) of each probed example."""

    names: tuple[str, ...]
    layers: tuple[nn.Linear, ...]
    inputs: tuple[Tensor, ...]


@torch.no_grad()
def choose(
    model: Model, layers: Mapping[str, nn.Linear], batches: Sequence[Mapping[str, Tensor]], form: AffineForm
) -> dict[str, InputForm]:
    """The input form of each named layer.

    Examples are shown one at a time: a range over a batch would be coarser than the device's, which runs one.

    Raises:
        UnsupportedError: A layer reads values that are not finite.
    """
    chosen = {name: InputForm("tensor") for name in layers}
    for group in _groups(model, layers, _examples(batches)):
        chosen |= dict.fromkeys(group.names, _best(group, form))
    return chosen


def _best(group: _Group, form: AffineForm) -> InputForm:
    plain = _error(group, InputForm("tensor"), form)
    best, error = InputForm("tensor"), plain
    smooth = InputForm("tensor", _smoothing(group))
    if _gains(plain, smoothed := _error(group, smooth, form), LEAST_SMOOTHING_GAIN_DB):
        best, error = smooth, smoothed
    if all(layer.out_features < layer.in_features for layer in group.layers):
        by_token = InputForm("token")
        if _gains(error, _error(group, by_token, form), LEAST_TOKEN_GAIN_DB):
            return by_token
    return best


def _gains(before: float, after: float, least_db: float) -> bool:
    return before > after * 10 ** (least_db / 10)


def _smoothing(group: _Group) -> Tensor:
    """Factors that split each channel's range evenly between input and weight, 1 for the middle channel.

    Channels that the probed examples never excite keep factor 1, and the others stay within a bound: what
    looks small in a few examples must not be scaled up so far that it coarsens the range when it is not.
    """
    largest = torch.stack([x.abs().amax(0) for x in group.inputs]).amax(0)
    weight = torch.stack([layer.weight.abs().amax(0) for layer in group.layers]).amax(0)
    seen = (largest > 0) & (weight > 0)
    if not bool(seen.any()):
        return torch.ones_like(largest)
    factors = largest**SMOOTHING_STRENGTH / weight ** (1 - SMOOTHING_STRENGTH)
    factors = factors / factors[seen].median()
    return torch.where(seen, factors.clamp(LEAST_FACTOR, LARGEST_FACTOR), 1.0)


def _error(group: _Group, candidate: InputForm, form: AffineForm) -> float:
    """Squared output error of the group's layers, weights and inputs both rounded."""
    quantizer = DynamicQuantizer(candidate.granularity)
    factors = torch.ones(()) if candidate.smoothing is None else candidate.smoothing
    total = 0.0
    for layer in group.layers:
        rounded = encode_affine(layer.weight * factors, form).decode()
        for x in group.inputs:
            difference = quantizer(x / factors) @ rounded.T - x @ layer.weight.T
            total += float(difference.double().square().sum())
    return total


def _examples(batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The first of each batch, then the second of each, and so on, up to `PROBE_EXAMPLES`."""
    sizes = [len(next(iter(batch.values()))) for batch in batches]
    places = [(i, b) for i in range(min(max(sizes, default=0), PROBE_EXAMPLES)) for b in range(len(batches))]
    chosen = [(i, batches[b]) for i, b in places if i < sizes[b]][:PROBE_EXAMPLES]
    return [{name: value[i : i + 1] for name, value in batch.items()} for i, batch in chosen]


def _groups(
    model: Model, layers: Mapping[str, nn.Linear], examples: Sequence[Mapping[str, Tensor]]
) -> Iterator[_Group]:
    """The named layers by the tensor they read."""
    read: dict[str, list[Tensor]] = {name: [] for name in layers}

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            read[name].append(input_of(args, kwargs))

        return model.module.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)

    handles = [record(name) for name in layers]
    try:
        for example in examples:
            model.outputs(example)
    finally:
        for handle in handles:
            handle.remove()
    by_tensor: dict[tuple[int, ...], list[str]] = {}
    for name, tensors in read.items():
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise UnsupportedError(
                f"layer {name!r} reads NaN or infinite values on calibration data, which have no range: "
                "leave it out of the plan, or use weight_only, which needs no ranges"
            )
        if tensors:
            by_tensor.setdefault(tuple(id(t) for t in tensors), []).append(name)
    for names in by_tensor.values():
        inputs = tuple(t.reshape(-1, t.shape[-1]).float() for t in read[names[0]])
        yield _Group(tuple(names), tuple(layers[name] for name in names), inputs)
