"""What a stored form says of itself in a layer's profile."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

from flyweight.core.layer import CodebookProfile, LayerProfile
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.binary import BinaryWeight
from flyweight.tensors.codebook import CodebookWeight
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.float_formats import FloatWeight
from flyweight.tensors.grouping import columns_of_group
from flyweight.tensors.normal_float import NormalFloatWeight
from flyweight.tensors.vector import VectorWeight


@singledispatch
def in_form(encoding: EncodedWeight, layer: LayerProfile) -> LayerProfile:
    """``layer`` with its encoding, and the widths, scales and tables of it; as it is for other forms."""
    return layer


@in_form.register
def _affine(encoding: AffineWeight, layer: LayerProfile) -> LayerProfile:
    form = encoding.form
    group = {"tensor": None, "channel": layer.columns, "group": min(form.group_size, layer.columns)}
    return replace(layer, encoding="affine", code_bits=form.bits, group_size=group[form.granularity])


@in_form.register
def _binary(encoding: BinaryWeight, layer: LayerProfile) -> LayerProfile:
    size = columns_of_group(layer.columns, encoding.form.group_size) if encoding.form.scaled else None
    return replace(layer, encoding=encoding.form.levels, group_size=size)


@in_form.register
def _codebook(encoding: CodebookWeight, layer: LayerProfile) -> LayerProfile:
    tables, entries = encoding.table.shape
    return replace(layer, encoding="codebook", codebook=CodebookProfile(entries=entries, tables=tables))


@in_form.register
def _normal_float(encoding: NormalFloatWeight, layer: LayerProfile) -> LayerProfile:
    table = CodebookProfile(entries=1 << encoding.form.bits, tables=0)
    size = columns_of_group(layer.columns, encoding.form.group_size)
    return replace(layer, encoding="normal_float", group_size=size, codebook=table)


@in_form.register
def _vector(encoding: VectorWeight, layer: LayerProfile) -> LayerProfile:
    entries, dimension = encoding.table.shape
    table = CodebookProfile(entries=entries, dimension=dimension)
    return replace(layer, encoding="vector", codebook=table)


@in_form.register
def _float(encoding: FloatWeight, layer: LayerProfile) -> LayerProfile:
    size = layer.columns if encoding.form.scaled else None
    return replace(layer, encoding=encoding.form.format, group_size=size)
