"""Encoded layers, replaced by what is exported for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor, fx, nn

from flyweight.core.layer import LayerProfile, ModelProfile
from flyweight.export.onnx_convolution import (
    CodedKernel,
    DecodedKernel,
    ExportConvolution,
    IntegerKernel,
    Kernel,
)
from flyweight.export.onnx_embedding import CodedTable, DecodedTable, ExportEmbedding, PackedTable, Table
from flyweight.export.onnx_inputs import ExportQuantizer, check_activation_bits, dynamic_quantizer
from flyweight.export.onnx_integers import IntegerWeight, is_exact, on_one_grid
from flyweight.export.onnx_linear import (
    BlockProduct,
    CodedProduct,
    DecodedProduct,
    ExportLinear,
    IntegerProduct,
    Product,
    exported_float,
)
from flyweight.export.onnx_packed import Packed
from flyweight.export.onnx_products import LEVELS, is_close, way_of
from flyweight.export.onnx_routes import Route, blocks_of, routes
from flyweight.export.onnx_stored import Decoder
from flyweight.export.onnx_stored_forms import as_affine, stored
from flyweight.measure.profile import stored_alike, unencoded, with_encoding
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.encoded import EncodedLayer, compute, encoded_layers, exchange


def to_export_form(root: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Replace every encoded layer and static quantizer by what is exported for it, in place.

    Args:
        root: The model's module.
        inputs: What each encoded layer multiplies on an example, by name; those it does not reach are left
            out.

    Raises:
        UnsupportedError: A stored form has no ONNX counterpart.
    """
    layers = dict(encoded_layers(root))
    described = _described(layers)
    chosen = routes(described)
    looked_up = {_owner(x) for x in described.layers if chosen[x.name] == "rows"}
    calls = _calls(root)
    for name, layer in layers.items():
        quantizer = dynamic_quantizer(layer)
        check_activation_bits(name, layer.input_bits if quantizer is None else quantizer.bits)
        facts = described.by_name[name]
        given = _Encoded(layer, facts, inputs.get(name), _owner(facts) in looked_up, calls[name] <= 1)
        exported = _exported(given, chosen[name])
        for setting in set(type(layer.layer).__constants__) - set(dir(exported)):
            setattr(exported, setting, getattr(layer.layer, setting))  # the model's code may read it
        exchange(root, layer, exported)
    for module in list(root.modules()):
        if isinstance(module, StaticQuantizer):
            exchange(root, module, ExportQuantizer(module))


def _described(layers: Mapping[str, EncodedLayer]) -> ModelProfile:
    """What `routes` must know of the layers."""
    found: list[LayerProfile] = []
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        owner = owners.setdefault(id(layer.layer.weight), name)
        tied = owner != name and stored_alike(layers[owner], layer)
        bare = unencoded(name, layer.layer)
        found.append(replace(with_encoding(bare, layer), tied_to=owner if tied else None))
    return ModelProfile(model="", layers=tuple(found))


def _owner(layer: LayerProfile) -> str:
    return layer.tied_to or layer.name


def _calls(root: nn.Module) -> Counter[str]:
    """How often a graph calls each layer; nothing is known of other modules."""
    graphs = [root.graph] if isinstance(root, fx.GraphModule) else []
    return Counter(str(n.target) for graph in graphs for n in graph.nodes if n.op == "call_module")


@final
@dataclass(frozen=True, eq=False)
class _Encoded:
    """A layer that is exported.

    Attributes:
        layer: With its stored weight.
        facts: Of it, see `flyweight.export.onnx_routes`.
        x: What it multiplies on an example, or None.
        looked_up: An embedding that reads packed codes has the same weight.
        called_once: It reads one value.
    """

    layer: EncodedLayer
    facts: LayerProfile
    x: Tensor | None
    looked_up: bool
    called_once: bool


def _exported(given: _Encoded, route: Route) -> nn.Module:
    layer = given.layer
    if route == "float":
        return exported_float(layer)
    if isinstance(layer.layer, nn.Linear):
        return ExportLinear(layer, _product(given, route))
    if isinstance(layer.layer, nn.Embedding):
        return ExportEmbedding(_table(given, route))
    return ExportConvolution(layer, _kernel(given, route))


def _table(given: _Encoded, route: Route) -> Table:
    encoding, blocks = given.layer.encoding(), blocks_of(given.facts)
    affine = as_affine(encoding)
    if affine is None or route == "decoded":
        return DecodedTable(Decoder(stored(encoding)))
    if route == "codes" or blocks is None:
        return CodedTable(affine)
    return PackedTable(Packed(affine, blocks, flat=True, half_scales=True))


def _kernel(given: _Encoded, route: Route) -> Kernel:
    encoding = given.layer.encoding()
    affine = as_affine(encoding)
    if affine is not None and route == "codes":
        return CodedKernel(affine)
    if route == "integers" and _may_be_integers(given):
        return IntegerKernel(IntegerWeight(given.layer, called_once=given.called_once))
    return DecodedKernel(Decoder(stored(encoding)))


def _product(given: _Encoded, route: Route) -> Product:
    layer, quantizer = given.layer, dynamic_quantizer(given.layer)
    affine, blocks = as_affine(layer.encoding()), blocks_of(given.facts)
    if affine is not None and route == "codes":
        return CodedProduct(layer, affine)
    if route == "integers" and _may_be_integers(given):
        return IntegerProduct(IntegerWeight(layer, called_once=given.called_once), quantizer)
    if affine is not None and blocks is not None:
        zeros = affine.zero_point is not None
        way = way_of(affine.decode(), blocks, given.x, has_zero_points=zeros, packed=given.looked_up)
        # level 4 rounds what it reads by itself, and finer than a range for all
        if way == "integers" or (way == "blocks" and quantizer is None):
            return BlockProduct(Packed(affine, blocks, flat=given.looked_up), LEVELS[way])
    return DecodedProduct(Decoder(stored(layer.encoding())), quantizer)


def _may_be_integers(given: _Encoded) -> bool:
    """Whether integers of one scale a row are what is stored, or as good for the layer's output."""
    layer = given.layer
    encoding = layer.encoding()
    if is_exact(encoding):
        return True
    weight = encoding.decode()
    codes, scale = on_one_grid(weight)
    rounded = codes * scale.reshape(-1, *[1] * (weight.dim() - 1))
    if given.x is None:
        return is_close(weight, rounded)
    return is_close(*(compute(layer.layer, given.x, w, None) for w in (weight, rounded)))
