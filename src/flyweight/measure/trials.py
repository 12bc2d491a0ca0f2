"""What quantizing one layer does to the model's output: tried, layer by layer, in the float model.

Every trial is a pass over a few examples. Their number is chosen to keep all trials within a fixed amount of
work; where even few examples are too many, only the layers whose own outputs suffer most are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from flyweight.core.analysis import KL, RELATIVE, Wider
from flyweight.measure.agreement import unfused_attention
from flyweight.measure.error import Sums, float_weight, input_quantizers, quantized_output, watched
from flyweight.model import Model
from flyweight.progress import SILENT, Progress
from flyweight.tensors.activation import ChannelQuantizer
from flyweight.tensors.affine import AffineForm, AffineWeight, encode_affine
from flyweight.tensors.encoded import EncodedLayer, EncodedWeight, encoded_layers
from flyweight.tensors.stored import Stored

TRIAL_MACS = 5e11  # of all trials together: 15 s of one core, in the convolutions of a CIFAR network
TRIAL_CALLS = 1000  # of the model; one with a short text takes 20 ms of one core in MiniLM
TRIALS = 2  # of each layer: as it is, and one width higher
LEAST_EXAMPLES = 8  # with fewer, single examples would decide which layer is worst
WIDTHS = (2, 4, 8, 16)  # bits that files hold
NARROW = 8  # bits below which the range of least squared error is worth its search
PROBABILITY_SUM = 0.05  # how far from 1 a row of probabilities may sum, as `flyweight.tasks` takes it

Batch = Mapping[str, Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of the model's output; see `flyweight.core.analysis.LayerLoss`."""

    damage: float | None
    wider: Wider | None


def affordable(layers: int, batches: Sequence[Batch], macs: int) -> tuple[int, int]:
    """(batches, layers) that trials may use: all of both, fewer batches, or few of both.

    Args:
        layers: To be tried.
        batches: Of one size.
        macs: Multiply-accumulates of the model on one example.
    """
    size = _examples(batches[:1])
    passes = min(TRIAL_CALLS, TRIAL_MACS / max(macs * size, 1))
    least = min(-(-LEAST_EXAMPLES // size), len(batches))
    count = min(max(int(passes / (TRIALS * layers)), least), len(batches))
    return count, min(max(int(passes / (TRIALS * count)), 1), layers)


@torch.no_grad()
def damage(wanted: Sequence[Tensor], found: Sequence[Tensor], unit: str) -> float | None:
    """How far outputs have moved, in `KL` or `RELATIVE`; None where that is not a finite number."""
    if unit == RELATIVE:
        sums = Sums()
        for one, other in zip(wanted, found, strict=True):
            sums.add(one, other)
        moved = sums.deviation()
        return None if moved is None else moved.relative
    expected, got = torch.cat(list(wanted)).double(), torch.cat(list(found)).double()
    log = torch.log if _are_probabilities(expected) else _log_softmax
    least = torch.finfo(torch.float32).tiny
    true, guess = log(expected), log(got).clamp_min(torch.tensor(least).log().item())
    rows = torch.where(true.exp() > 0, true.exp() * (true - guess), 0.0).sum(-1)
    mean = float(rows.mean())
    return max(mean, 0.0) if abs(mean) < float("inf") else None


def unit_of(outputs: Tensor, *, classes: bool) -> str:
    """`KL` for one number a class, else `RELATIVE`."""
    return KL if classes and outputs.dim() == 2 and outputs.shape[1] > 1 else RELATIVE


@torch.no_grad()
def first_outputs(model: Model, batches: Sequence[Batch]) -> list[Tensor]:
    """The model's first output on each batch."""
    with unfused_attention():
        return [model.outputs(batch)[0] for batch in batches]


@torch.no_grad()
def trials(
    reference: Model,
    compressed: Model,
    bits: Mapping[str, float],
    batches: Sequence[Batch],
    *,
    unit: str,
    progress: Progress = SILENT,
) -> dict[str, Trial]:
    """The named layers quantized in ``reference``, one after the other, and once more one width higher.

    Args:
        reference: Float, as for `flyweight.measure.error.layer_errors`; left as it is.
        compressed: Its layers are put in.
        bits: Of one code, by name of the layers to try, which both models have.
        batches: Model inputs.
        unit: Of the damage.
        progress: Told of each layer.
    """
    layers, readers = dict(encoded_layers(compressed.module)), input_quantizers(compressed.module)
    wanted = first_outputs(reference, batches)
    found = {}
    for name in progress.track(tuple(bits), "Trying each layer alone"):
        trying = _Trying(reference, name, layers[name], readers.get(name), batches, wanted, unit)
        now = trying.damage()
        found[name] = Trial(damage=now, wider=trying.wider(bits[name], now))
    return found


@final
@dataclass(frozen=True, eq=False)
class _Trying:
    """One layer in the float model."""

    reference: Model
    name: str
    layer: EncodedLayer
    quantizers: Sequence[nn.Module | None] | None
    batches: Sequence[Batch]
    wanted: Sequence[Tensor]
    unit: str

    def damage(self, weight: Tensor | None = None, bias: Tensor | None = None) -> float | None:
        """With the layer as it is, or with another weight and bias; None where the model never calls it."""
        called = []

        def watch(_: str, call: int, x: Tensor, y: Tensor) -> Tensor:
            called.append(call)
            return quantized_output(self.layer, x, self.quantizers, call, weight=weight, bias=bias)

        outputs = [watched(self.reference, (self.name,), batch, watch)[0] for batch in self.batches]
        return damage(self.wanted, outputs, self.unit) if called else None

    def wider(self, bits: float, now: float | None) -> Wider | None:
        """One width higher than ``bits``, rounded to nearest, with the float model's bias.

        A width at which that does no less than ``now`` is skipped: rounding that compensates does better.
        """
        found = None
        for form in wider_forms(self.layer.encoding(), bits):
            found = self._in(form, bits)
            if now is None or found.damage is None or found.damage < now:
                break
        return found

    def _in(self, form: AffineForm, bits: float) -> Wider:
        layer, encoding = self.layer, self.layer.encoding()
        weight = float_weight(self.reference, self.name, layer)
        mask = None if encoding.mask is None else encoding.mask.reshape(weight.shape)
        wide = encode_affine(weight, form, mask)
        moved = self.damage(wide.decode().to(weight.dtype), self._float_bias())
        return Wider(bits=form.bits, more_bytes=wide.nbytes - bytes_in_file(encoding, bits), damage=moved)

    def _float_bias(self) -> Tensor | None:
        if isinstance(self.layer.layer, nn.Embedding):
            return None
        if isinstance(self.layer.input_quantizer, ChannelQuantizer):
            return self.layer.layer.bias  # it belongs to the codes that the layer reads
        bias: Tensor | None = self.reference.module.get_submodule(self.name).bias  # type: ignore[assignment]
        return bias


def wider_forms(encoding: EncodedWeight, bits: float) -> Iterator[AffineForm]:
    """The widths that files hold above ``bits``, the next one first; scales as they are, or by channel."""
    form = encoding.form if isinstance(encoding, AffineWeight) else _with_its_groups(encoding)
    for width in WIDTHS:
        if width > bits:
            yield replace(form, bits=width, range_method="mse" if width < NARROW else "minmax")


def _with_its_groups(encoding: EncodedWeight) -> AffineForm:
    size = getattr(encoding.form, "group_size", 0) if isinstance(encoding, Stored) else 0
    return AffineForm(granularity="group", group_size=size) if size else AffineForm()


def bytes_in_file(encoding: EncodedWeight, bits: float) -> float:
    """Of a weight, whose codes files widen to the next width they hold."""
    if not isinstance(encoding, AffineWeight) or bits in WIDTHS:
        return encoding.nbytes
    width = next(width for width in WIDTHS if width > bits)
    return replace(encoding, form=replace(encoding.form, bits=width)).nbytes


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all()) and bool(((outputs.sum(-1) - 1).abs() <= PROBABILITY_SUM).all())


def _log_softmax(outputs: Tensor) -> Tensor:
    return outputs.log_softmax(-1)


def _examples(batches: Sequence[Batch]) -> int:
    return sum(len(next(iter(batch.values()))) for batch in batches)
