"""What each layer became, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from flyweight.core.analysis import Deviation, LayerErrors
from flyweight.core.layer import FLOAT_BITS, LayerProfile, ModelProfile
from flyweight.core.plan import Plan
from flyweight.core.report import LayerReport
from flyweight.model import Model


def layer_reports(
    original: Model,
    plan: Plan,
    errors: Mapping[str, LayerErrors],
    stored: ModelProfile,
) -> tuple[LayerReport, ...]:
    """One record a layer, in execution order, then one for each module that no technique takes.

    Args:
        original: What it was.
        plan: How it was compressed.
        errors: Of its quantized layers, from `flyweight.measure.error.layer_errors`.
        stored: What it became, as the file stores it (`flyweight.core.protocols.Exporter.lower`).
    """
    layers = tuple(
        LayerReport(
            name=layer.name,
            op=layer.op,
            technique="+".join(d.technique for d in plan.of_layer(layer.name)) or "float",
            weights=layer.weights,
            weight_bits=float(layer.code_bits or FLOAT_BITS),
            activation_bits=layer.activation_bits,
            storage_bytes=float(layer.storage_bytes),
            weight_sqnr_db=_sqnr_db(errors[layer.name].weight) if layer.name in errors else None,
            output_sqnr_db=_sqnr_db(errors[layer.name].output) if layer.name in errors else None,
        )
        for layer in stored.layers
    )
    kinds = {name: type(m).__name__ for name, m in original.module.named_modules()}  # a graph has lost them
    return layers + tuple(
        LayerReport(
            name=module.name,
            op=kinds.get(module.name, module.kind),
            technique="float",
            weights=module.weights,
            weight_bits=float(FLOAT_BITS),
            activation_bits=FLOAT_BITS,
            storage_bytes=module.storage_bytes,
            weight_sqnr_db=None,
            output_sqnr_db=None,
        )
        for module in stored.float_modules
    )


def _sqnr_db(found: Deviation | None) -> float | None:
    return None if found is None else found.sqnr_db


def notes_on(layers: tuple[LayerReport, ...], planned: ModelProfile) -> tuple[str, ...]:
    """What the reader of the report must know of the layers; ``planned`` is the profile before lowering."""
    notes = []
    left = [layer for layer in layers if layer.technique == "float"]
    if left:
        some = ", ".join(layer.name for layer in left[:3]) + (", ..." if len(left) > 3 else "")
        stored_bytes = sum(layer.storage_bytes for layer in left)
        notes.append(f"{len(left)} of {len(layers)} layers stay float, {stored_bytes:.0f} bytes: {some}")
    modules = {module.name for module in planned.float_modules}
    strange = [f"{layer.name} ({layer.op})" for layer in left if layer.name in modules]
    if strange:
        some = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        notes.append(f"no technique takes layers of these kinds: {some}")
    return (*notes, *_notes_on_widths(layers, planned), *_notes_on_forms(layers, planned))


def note_on_unused(before: ModelProfile) -> tuple[str, ...]:
    """Which layers of the original no plan names and no file holds, if any."""
    if not before.unused:
        return ()
    some = ", ".join(before.unused[:3]) + (", ..." if len(before.unused) > 3 else "")
    return (f"nothing uses the output of {some}: left out of the plan and of the file",)


def _notes_on_widths(layers: tuple[LayerReport, ...], planned: ModelProfile) -> Iterator[str]:
    """Which codes are wider in the file than they need to be, and what that costs."""
    more: Counter[tuple[int, int]] = Counter()
    for layer in layers:
        before = planned.by_name.get(layer.name)
        bits = None if before is None else _code_bits(before)
        if before is not None and bits is not None and bits < layer.weight_bits < FLOAT_BITS:
            more[bits, int(layer.weight_bits)] += max(round(layer.storage_bytes - before.storage_bytes), 0)
    for (asked, took), extra in sorted(more.items()):
        codes = f"codes of {asked} bit{'s' * (asked > 1)}"
        yield f"the format stores {codes} in {took}: {extra} bytes more than they need"


def _code_bits(layer: LayerProfile) -> int | None:
    """Of one code as the stored form has it."""
    if layer.codebook is not None:
        return (layer.codebook.entries - 1).bit_length()
    return {"binary": 1, "ternary": 2}.get(layer.encoding, layer.code_bits)


def _notes_on_forms(layers: tuple[LayerReport, ...], planned: ModelProfile) -> Iterator[str]:
    """Which forms are lost on the way to the file."""
    forms = {layer.name: layer.encoding for layer in planned.layers}
    wide = [forms[layer.name] for layer in layers if layer.name in forms and layer.weight_bits >= FLOAT_BITS]
    for form, count in sorted(Counter(wide).items()):
        if form not in {"float32", "affine"}:
            where = "1 layer" if count == 1 else f"{count} layers"
            yield f"the format stores the {form} weights of {where} decoded, as float32"
