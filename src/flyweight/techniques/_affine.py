"""What the techniques that store affine weights share: form from settings, encoder, predicted size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from flyweight.core.layer import LayerProfile
from flyweight.core.plan import Decision, Scalar
from flyweight.techniques._importance import statistics_of
from flyweight.tensors.affine import AffineForm, encode_affine
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import EncodedLayer
from flyweight.tensors.ranges import InputStatistics

if TYPE_CHECKING:
    from flyweight.model import Model


def form_of(settings: Mapping[str, Scalar]) -> AffineForm:
    """The stored form that the settings name.

    Raises:
        ValueError: One is out of range.
    """
    group_size = settings.get("group_size", 0)
    granularity = settings.get("granularity", "channel")
    return AffineForm(
        bits=settings["bits"],  # type: ignore[arg-type]
        symmetric=settings.get("symmetric", True),  # type: ignore[arg-type]
        granularity=granularity,  # type: ignore[arg-type]
        group_size=group_size if granularity == "group" else 0,  # type: ignore[arg-type]
        range_method=settings.get("range_method", "mse"),  # type: ignore[arg-type]
    )


def encoder_for(
    root: nn.Module,
    name: str,
    form: AffineForm,
    *,
    least_scale: Tensor | None = None,
    inputs: InputStatistics | None = None,
) -> AffineEncoder:
    """The encoder of the layer at ``name``; the many scales of an embedding are kept in float16.

    So are those of a layer that shares its weight with an embedding: the file then holds one set of codes.

    Args:
        root: Of the model.
        name: Of the layer.
        form: What to store.
        least_scale: As for `flyweight.tensors.affine.encode_affine`.
        inputs: Likewise. The ranges found with it stay, whatever becomes of the weight.
    """
    module = root.get_submodule(name)
    layer = module.layer if isinstance(module, EncodedLayer) else module
    if inputs is not None:
        mask = module.encoding().mask if isinstance(module, EncodedLayer) else None
        stored = encode_affine(layer.weight, form, mask, least_scale=least_scale, inputs=inputs)  # type: ignore[arg-type]
        return AffineEncoder(form, scale=stored.scale, zero_point=stored.zero_point)
    shares = any(isinstance(m, nn.Embedding) and m.weight is layer.weight for m in root.modules())
    return AffineEncoder(form, least_scale=least_scale, half_scales=shares)


def statistics_for(
    model: Model, decision: Decision, form: AffineForm, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, InputStatistics | None]:
    """Layer name to what is known of its inputs, where ranges are adaptive and there are data; else None."""
    measured = form.range_method == "adaptive" and batches
    return statistics_of(model, decision.layers, batches) if measured else dict.fromkeys(decision.layers)


def predicted(layer: LayerProfile, form: AffineForm) -> LayerProfile:
    """The layer stored in ``form``."""
    kept = layer.weights if layer.kept is None else max(layer.kept, 1)
    bits = form.stored_bits(layer.rows, layer.columns, kept=layer.kept) / kept
    group = {"tensor": None, "channel": layer.columns, "group": min(form.group_size, layer.columns)}[
        form.granularity
    ]
    return replace(
        layer, weight_bits=bits, encoding="affine", code_bits=form.bits, group_size=group, codebook=None
    )
