"""What the techniques that store affine weights share: form from settings, encoder, predicted size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from flyweight.core.layer import LayerProfile
from flyweight.core.plan import Scalar
from flyweight.tensors.affine import AffineForm
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import EncodedLayer


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
    root: nn.Module, name: str, form: AffineForm, *, least_scale: Tensor | None = None
) -> AffineEncoder:
    """The encoder of the layer at ``name``; the many scales of an embedding are kept in float16.

    So are those of a layer that shares its weight with an embedding: the file then holds one set of codes.
    """
    module = root.get_submodule(name)
    layer = module.layer if isinstance(module, EncodedLayer) else module
    shares = any(isinstance(m, nn.Embedding) and m.weight is layer.weight for m in root.modules())
    return AffineEncoder(form, least_scale=least_scale, half_scales=shares)


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
