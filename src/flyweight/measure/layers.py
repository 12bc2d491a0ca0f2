"""What each layer became, for the report."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flyweight.core.layer import FLOAT_BITS
from flyweight.core.plan import Plan
from flyweight.core.report import LayerReport
from flyweight.measure.error import folded, output_sqnr_db, weight_sqnr_db
from flyweight.measure.profile import profile
from flyweight.model import Model


def layer_reports(
    original: Model, compressed: Model, plan: Plan, batch: Mapping[str, Tensor]
) -> tuple[LayerReport, ...]:
    """One record a layer, in execution order; errors of outputs are measured on ``batch``."""
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
        for layer in profile(compressed).layers
    )


def notes_on(layers: tuple[LayerReport, ...]) -> tuple[str, ...]:
    """What the reader of the report must know of the layers."""
    notes = []
    left = [layer.name for layer in layers if layer.technique == "float"]
    if left:
        some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        notes.append(f"{len(left)} of {len(layers)} layers stay float: {some}")
    return tuple(notes)
