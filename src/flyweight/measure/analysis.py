"""Where quality is lost: every quantized layer's errors, their shape, and what each does to the output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flyweight.core.analysis import Analysis, ErrorHistogram, LayerErrors, LayerLoss
from flyweight.core.layer import Encoding, LayerProfile
from flyweight.measure.error import Sums, float_weight
from flyweight.measure.fits import error_histogram
from flyweight.measure.profile import profile
from flyweight.measure.trials import affordable, damage, first_outputs, trials, unit_of
from flyweight.model import Model
from flyweight.progress import SILENT, Progress
from flyweight.tensors.activation import ranges_span_batch
from flyweight.tensors.encoded import EncodedLayer, encoded_layers

EXAMPLES = 64
EXAMPLES_ONE_BY_ONE = 16
EXAMPLES_A_CALL = 8
MASK = "attention_mask"
_CODE_BITS: Mapping[Encoding, int] = {
    "binary": 1,
    "ternary": 2,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float16": 16,
    "bfloat16": 16,
}


def analysed_batches(
    compressed: Model, batches: Sequence[Mapping[str, Tensor]]
) -> list[Mapping[str, Tensor]]:
    """The first calibration examples, in the batches that errors are measured on.

    One by one where examples interact, and for texts, which are cut to their own length: padding is not
    measured.
    """
    one_by_one = ranges_span_batch(compressed.module) or any(MASK in batch for batch in batches)
    size, most = (1, EXAMPLES_ONE_BY_ONE) if one_by_one else (EXAMPLES_A_CALL, EXAMPLES)
    return list(_pieces(batches, size, most))


def analyse(
    reference: Model,
    compressed: Model,
    errors: Mapping[str, LayerErrors],
    batches: Sequence[Mapping[str, Tensor]],
    *,
    classes: bool,
    progress: Progress = SILENT,
) -> Analysis | None:
    """The analysis of ``compressed``; None where no layer is quantized.

    Args:
        reference: As for `flyweight.measure.error.layer_errors`.
        compressed: Its layers are encoded and frozen.
        errors: What `layer_errors` found.
        batches: From `analysed_batches`.
        classes: The first output holds one number a class.
        progress: Told of each layer that is tried.
    """
    layers = dict(encoded_layers(compressed.module))
    counted = profile(compressed)
    names = [layer.name for layer in counted.layers if layer.name in errors]
    if not names or not batches:
        return None
    count, most = affordable(len(names), batches, counted.macs)
    wanted, found = (first_outputs(model, batches) for model in (reference, compressed))
    unit, output = unit_of(wanted[0], classes=classes), Sums()
    for one, other in zip(wanted, found, strict=True):
        output.add(one, other)
    worst_first = sorted(names, key=lambda name: -_own_error(errors[name]))
    bits = {name: code_bits(counted.by_name[name]) for name in worst_first[:most]}
    tried = trials(reference, compressed, bits, batches[:count], unit=unit, progress=progress)
    return Analysis(
        unit=unit,
        examples=_examples(batches),
        trial_examples=_examples(batches[:count]),
        damage=damage(wanted[:count], found[:count], unit),
        output=output.deviation(),
        layers=tuple(
            LayerLoss(
                name=name,
                bits=code_bits(counted.by_name[name]),
                errors=errors[name],
                histogram=_histogram(reference, name, layers[name]),
                damage=tried[name].damage if name in tried else None,
                wider=tried[name].wider if name in tried else None,
            )
            for name in names
        ),
    )


def code_bits(layer: LayerProfile) -> float:
    """Bits of one weight without scales and tables; of all that is stored, for forms that are not known."""
    if layer.code_bits is not None:
        return float(layer.code_bits)
    if layer.codebook is not None:
        return math.log2(layer.codebook.entries) / layer.codebook.dimension
    return float(_CODE_BITS.get(layer.encoding, layer.weight_bits))


@torch.no_grad()
def _histogram(reference: Model, name: str, layer: EncodedLayer) -> ErrorHistogram | None:
    return error_histogram(float_weight(reference, name, layer), layer.encoding())


def _own_error(errors: LayerErrors) -> float:
    alone = errors.output_alone
    return 0.0 if alone is None or alone.relative is None else alone.relative


def _pieces(batches: Sequence[Mapping[str, Tensor]], size: int, most: int) -> Iterator[Mapping[str, Tensor]]:
    left = most
    for batch in batches:
        count = _examples([batch])
        for start in range(0, count, size):
            rows = slice(start, min(start + size, start + left, count))
            if left <= 0:
                return
            left -= rows.stop - rows.start
            yield _without_padding({name: value[rows] for name, value in batch.items()})


def _without_padding(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Cut to the longest text, where texts are padded on the right."""
    mask = batch.get(MASK)
    if mask is None or mask.dim() != 2:
        return batch
    length = int(mask.sum(1).max())
    if not 0 < length < mask.shape[1] or bool(mask[:, length:].any()):
        return batch
    return {name: v[:, :length] if v.shape == mask.shape else v for name, v in batch.items()}


def _examples(batches: Sequence[Mapping[str, Tensor]]) -> int:
    return sum(len(next(iter(batch.values()))) for batch in batches)
