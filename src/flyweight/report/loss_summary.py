"""Where quality is lost, in sentences and rows of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from flyweight.core.analysis import RELATIVE, Analysis, Deviation, LayerLoss, Wider
from flyweight.report.wording import bytes_text, damage_text, percent_text, printable

NOTHING = "\N{EN DASH}"


@final
@dataclass(frozen=True, kw_only=True)
class LossRow:
    """One layer as text.

    Attributes:
        damage: What it does to the output by itself.
        wider: Bits one width higher, what it does then, and the bytes that takes.
    """

    name: str
    bits: str
    weight: tuple[str, str, str, str]
    output_alone: tuple[str, str, str]
    output: tuple[str, str, str]
    damage: str
    wider: str
    fit: str


def lead(analysis: Analysis) -> str:
    """What all layers do together, and which of them does most."""
    count = (
        "the quantized layer" if len(analysis.layers) == 1 else f"all {len(analysis.layers)} quantized layers"
    )
    moved = damage_text(analysis.damage, analysis.unit)
    text = f"With {count}, the model's output moves by {moved} ({unit_text(analysis.unit)})."
    worst = analysis.ranked[0] if analysis.ranked else None
    if worst is None or worst.damage is None or len(analysis.layers) == 1:
        return text
    return f"{text} By itself, {printable(worst.name)} does most: {damage_and_wider(worst, analysis.unit)}."


def damage_and_wider(layer: LayerLoss, unit: str) -> str:
    """``"0.0038; with weights in 8 bits 6.5e-06, for 288 B more"``."""
    wider = wider_text(layer, unit)
    return damage_text(layer.damage, unit) + (f"; with weights in {wider}" if wider else "")


def wider_text(layer: LayerLoss, unit: str) -> str:
    """``"8 bits 6.5e-06, for 288 B more"``; empty where it was not tried."""
    if layer.wider is None or layer.wider.damage is None:
        return ""
    then = damage_text(layer.wider.damage, unit)
    return f"{layer.wider.bits} bits {then}, for {bytes_text(layer.wider.more_bytes)} more"


def unit_text(unit: str) -> str:
    """The unit of damages, as a reader may look it up."""
    return "relative error of the output" if unit == RELATIVE else printable(unit)


def conditions(analysis: Analysis) -> str:
    """What was measured, on what."""
    text = f"Measured on the PyTorch reference with {analysis.examples} calibration examples, not on the file"
    if analysis.trial_examples < analysis.examples:
        text += f"; the effect on the output with {analysis.trial_examples} of them"
    tried = sum(layer.damage is not None for layer in analysis.layers)
    if tried < len(analysis.layers):
        text += f"; only the {tried} of {len(analysis.layers)} layers with the largest error were tried alone"
    if any(layer.wider is not None for layer in analysis.layers):
        text += "; one width higher is rounded to nearest, and skipped where that does no less"
    return text + "."


def rows(analysis: Analysis) -> tuple[LossRow, ...]:
    """One row a layer, the worst first."""
    return tuple(row(layer, analysis.unit) for layer in analysis.ranked)


def row(layer: LayerLoss, unit: str) -> LossRow:
    """The layer's row."""
    weight = layer.errors.weight
    best = layer.histogram.fits[0] if layer.histogram and layer.histogram.fits else None
    return LossRow(
        name=layer.name,
        bits=f"{layer.bits:.3g}",
        weight=(
            NOTHING if weight is None else f"{weight.mse:.2e}",
            _decibels(weight),
            NOTHING if weight is None else f"{weight.max_abs:.2g}",
            _cosine(weight),
        ),
        output_alone=_output(layer.errors.output_alone),
        output=_output(layer.errors.output),
        damage=damage_text(layer.damage, unit),
        wider=_wider(layer, unit),
        fit=NOTHING if best is None else f"{best.shape.capitalize()}, {percent_text(best.distance, 1)} off",
    )


def _wider(layer: LayerLoss, unit: str) -> str:
    """``"8: 6.5e-06, +288 B"``."""
    if layer.wider is None:
        return NOTHING
    return f"{layer.wider.bits}: {damage_text(layer.wider.damage, unit)}, {more_text(layer.wider)}"


def more_text(wider: Wider) -> str:
    """``"+288 B"``."""
    return f"{'+' * (wider.more_bytes > 0)}{bytes_text(wider.more_bytes)}"


def _output(found: Deviation | None) -> tuple[str, str, str]:
    """(relative error, decibels, cosine)."""
    relative = None if found is None else found.relative
    return NOTHING if relative is None else damage_text(relative, RELATIVE), _decibels(found), _cosine(found)


def _decibels(found: Deviation | None) -> str:
    return NOTHING if found is None or found.sqnr_db is None else f"{found.sqnr_db:.1f}"


def _cosine(found: Deviation | None) -> str:
    return NOTHING if found is None or found.cosine is None else f"{found.cosine:.4f}"
