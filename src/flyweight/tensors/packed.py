"""Codes of any width packed without gaps, and stored weights as named tensors that hold nothing else.

The lowest bit of the first code is the lowest bit of the first byte; codes follow each other row by row, and
only the last byte is filled up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from flyweight.core.plan import Scalar
from flyweight.tensors.affine import AffineForm, AffineWeight
from flyweight.tensors.binary import BinaryForm, BinaryWeight
from flyweight.tensors.codebook import CodebookForm, CodebookWeight
from flyweight.tensors.encoded import EncodedWeight
from flyweight.tensors.float_formats import FloatForm, FloatWeight
from flyweight.tensors.normal_float import NormalFloatForm, NormalFloatWeight
from flyweight.tensors.vector import VectorForm, VectorWeight

AT_A_TIME = 2**20  # codes, a multiple of 8, whose bits are spread out together


@final
@dataclass(frozen=True)
class Width:
    """Bits a whole number takes, the lowest that occurs, and how far they are apart."""

    bits: int
    lowest: int = 0
    step: int = 1


@final
@dataclass(frozen=True)
class _Kind:
    """How one class of stored weights is taken apart.

    Attributes:
        weight: The class.
        form: That of its form.
        widths: Of its fields of whole numbers, by the form.
        optional: Fields that may be None, besides the mask.
    """

    weight: type[Any]
    form: type[Any]
    widths: Callable[[Any], Mapping[str, Width]]
    optional: tuple[str, ...] = ()


def _affine_widths(form: AffineForm) -> Mapping[str, Width]:
    width = Width(form.bits, int(form.grid.lowest))
    return {"codes": width, "zero_point": width}


def _sign_widths(form: BinaryForm) -> Mapping[str, Width]:
    return {"signs": Width(1, -1, 2) if form.levels == "binary" else Width(2, -1)}


_KINDS: Mapping[str, _Kind] = {
    "affine": _Kind(AffineWeight, AffineForm, _affine_widths, ("zero_point",)),
    "binary": _Kind(BinaryWeight, BinaryForm, _sign_widths),
    "codebook": _Kind(CodebookWeight, CodebookForm, lambda form: {"codes": Width(form.bits)}),
    "float": _Kind(FloatWeight, FloatForm, lambda form: {}, ("scale",)),
    "normal_float": _Kind(NormalFloatWeight, NormalFloatForm, lambda form: {"codes": Width(form.bits)}),
    "vector": _Kind(VectorWeight, VectorForm, lambda form: {"codes": Width(form.bits)}),
}
MASK = Width(1)


@final
@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a stored weight besides its tensors; JSON values.

    Attributes:
        kind: Name of its class.
        form: Fields of its form.
        shape: Of the decoded weight.
        packed: Field that is packed to the shape and dtype it had.
    """

    kind: str
    form: Mapping[str, Scalar]
    shape: tuple[int, ...]
    packed: Mapping[str, tuple[tuple[int, ...], str]]

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"{self.kind!r} is no stored form; known: {', '.join(_KINDS)}")
        for name, (shape, dtype) in self.packed.items():
            if dtype not in _DTYPES:
                raise ValueError(f"{name} is of dtype {dtype!r}; known: {', '.join(_DTYPES)}")
            if any(size < 0 for size in shape):
                raise ValueError(f"{name} has the shape {shape}")


_DTYPES: Mapping[str, torch.dtype] = {
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
}


def pack(codes: Int[Tensor, " *shape"] | Tensor, width: Width) -> UInt8[Tensor, " bytes"]:
    """Whole numbers in ``width.bits`` bits each.

    Raises:
        ValueError: One does not fit.
    """
    flat = codes.reshape(-1)
    pieces = [_bits_of(flat[i : i + AT_A_TIME], width) for i in range(0, len(flat), AT_A_TIME)]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.uint8)


def _bits_of(codes: Tensor, width: Width) -> UInt8[Tensor, " bytes"]:
    values = (codes.to(torch.int32) - width.lowest) // width.step
    if bool((values < 0).any()) or bool((values >= 2**width.bits).any()):
        raise ValueError(f"a code does not fit into {width.bits} bits from {width.lowest}")
    places = torch.arange(width.bits, dtype=torch.int32)
    spread = ((values[:, None] >> places) & 1).to(torch.uint8)
    return torch.from_numpy(np.packbits(spread.numpy().reshape(-1), bitorder="little"))


def unpack(
    stored: UInt8[Tensor, " bytes"], width: Width, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """The whole numbers of `pack`.

    Raises:
        ValueError: There are fewer or more bytes than they take.
    """
    count = math.prod(shape)
    if stored.dtype != torch.uint8 or len(stored) != -(-count * width.bits // 8):
        raise ValueError(f"{count} codes of {width.bits} bits do not take {len(stored)} bytes")
    result = torch.empty(count, dtype=dtype)
    places = torch.arange(width.bits, dtype=torch.int32)
    for first in range(0, count, AT_A_TIME):
        here = min(AT_A_TIME, count - first)
        start = first * width.bits // 8
        piece = stored[start : start + -(-here * width.bits // 8)].numpy()
        spread = np.unpackbits(piece, bitorder="little", count=here * width.bits)
        bits = torch.from_numpy(spread).reshape(here, width.bits).to(torch.int32)
        result[first : first + here] = ((bits << places).sum(1) * width.step + width.lowest).to(dtype)
    return result.reshape(shape)


def taken_apart(weight: EncodedWeight) -> tuple[Description, dict[str, Tensor]]:
    """A stored weight as its description and its tensors, whole numbers packed; the inverse of `joined`.

    Raises:
        ValueError: It is of a class that is not known.
    """
    kind = next((name for name, k in _KINDS.items() if k.weight is type(weight)), None)
    if kind is None:
        raise ValueError(f"a {type(weight).__name__} cannot be written")
    values = {f.name: getattr(weight, f.name) for f in fields(weight)}  # type: ignore[arg-type]
    form = values.pop("form")
    widths = {**_KINDS[kind].widths(form), "mask": MASK}
    tensors, packed = {}, {}
    for name, value in values.items():
        if isinstance(value, Tensor) and name in widths:
            packed[name] = (tuple(value.shape), str(value.dtype).removeprefix("torch."))
            tensors[name] = pack(value, widths[name])
        elif isinstance(value, Tensor):
            tensors[name] = value.contiguous()
    return Description(kind=kind, form=asdict(form), shape=tuple(weight.shape), packed=packed), tensors  # type: ignore[attr-defined]


def joined(description: Description, tensors: Mapping[str, Tensor]) -> EncodedWeight:
    """The stored weight that was taken apart.

    Raises:
        ValueError: Tensors are missing, unexpected or of the wrong size, or the form is out of range.
    """
    kind = _KINDS[description.kind]
    names = {f.name for f in fields(kind.weight)} - {"form", "shape"}
    lost = names - set(tensors) - {"mask", *kind.optional}
    if lost or set(tensors) - names:
        raise ValueError(f"a {description.kind} weight has the tensors {', '.join(sorted(names))}")
    try:
        form = kind.form(**description.form)
        widths = {**kind.widths(form), "mask": MASK}
        values: dict[str, Tensor | None] = {name: tensors.get(name) for name in names}
        for name, (shape, dtype) in description.packed.items():
            values[name] = unpack(tensors[name], widths[name], shape, _DTYPES[dtype])
    except (TypeError, KeyError) as error:
        raise ValueError(f"a {description.kind} weight cannot be read: {error}") from error
    weight: EncodedWeight = kind.weight(**values, form=form, shape=description.shape)
    return weight
