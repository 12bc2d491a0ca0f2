"""What each layer became, for the report."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flyweight.core.layer import FLOAT_BITS, ModelProfile
from flyweight.core.plan import Plan
from flyweight.core.report import LayerReport
from flyweight.measure.error import folded, output_sqnr_db, weight_sqnr_db
from flyweight.model import Model


def layer_reports(
    original: Model,
    compressed: Model,
    plan: Plan,
    batch: Mapping[str, Tensor],
    stored: ModelProfile,
) -> tuple[LayerReport, ...]:
    """One record a layer, in execution order.

    Args:
        original: What it was.
        compressed: What it became.
        plan: How.
        batch: Errors of outputs are measured on it.
        stored: Of ``compressed``, as the file stores it (`flyweight.core.protocols.Exporter.lower`).
    """
    weights = weight_sqnr_db(compressed.module)
    outputs = output_sqnr_db(folded(original), compressed, [batch])
    return tuple(
        LayerReport(
            name=layer.name,
            op=layer.op,
            technique="+".join(d.technique for d in plan.of_layer(layer.name)) or "float",
            weights=layer.weights,
            weight_bits=float(layer.code_bits or FLOAT_BITS),
            activation_bits=layer.activation_bits,
            storage_bytes=float(layer.storage_bytes),
            weight_sqnr_db=weights.get(layer.name),
            output_sqnr_db=outputs.get(layer.name),
        )
        for layer in stored.layers
    )


def notes_on(layers: tuple[LayerReport, ...], planned: ModelProfile) -> tuple[str, ...]:
    """What the reader of the report must know of the layers; ``planned`` is the profile before lowering."""
    notes = []
    left = [layer.name for layer in layers if layer.technique == "float"]
    if left:
        some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        notes.append(f"{len(left)} of {len(layers)} layers stay float: {some}")
    wider = {
        (before, int(layer.weight_bits))
        for layer in layers
        if (before := planned.by_name[layer.name].code_bits) is not None and before < layer.weight_bits
    }
    notes += [f"the format stores codes of {asked} bits in {took}" for asked, took in sorted(wider)]
    return tuple(notes)
