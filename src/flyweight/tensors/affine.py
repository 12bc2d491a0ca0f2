"""Integer codes with a scale and an optional zero point: for the whole weight, a row, or a group of a row.

Source: Jacob et al. 2017, arXiv:1712.05877, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from flyweight.tensors.ranges import Grid, InputStatistics, RangeMethod, range_of
from flyweight.tensors.stored import Stored

Granularity = Literal["tensor", "channel", "group"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
SCALE_BITS = 32  # of one scale; a file may hold those of an embedding in 16 where that loses nothing


@final
@dataclass(frozen=True, kw_only=True)
class AffineForm:
    """How a weight is stored.

    Attributes:
        bits: 2..8 or 16.
        symmetric: No zero point.
        granularity: What shares one scale: the whole ``tensor``, an output ``channel`` (row), or a ``group``
            of neighbouring columns of a row.
        group_size: Columns in a group, at least 2; the last group of a row may be shorter. 0 unless by group.
        range_method: How the covered interval is chosen.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = "channel"
    group_size: int = 0
    range_method: RangeMethod = "minmax"

    def __post_init__(self) -> None:
        Grid(self.bits, self.symmetric)
        if self.granularity == "group" and self.group_size < 2:
            raise ValueError(f"group_size must be at least 2 with granularity 'group', got {self.group_size}")
        if self.granularity != "group" and self.group_size != 0:
            raise ValueError(
                f"group_size {self.group_size} is only for granularity 'group', got {self.granularity!r}"
            )

    @property
    def grid(self) -> Grid:
        """The codes it may hold."""
        return Grid(self.bits, self.symmetric)

    @property
    def dtype(self) -> torch.dtype:
        """The smallest that holds its codes."""
        return torch.int8 if self.bits <= 8 else torch.int16

    def group_count(self, rows: int, columns: int) -> int:
        """Scales stored for a weight of that size."""
        if self.granularity == "tensor":
            return 1
        return rows * (-(-columns // self.group_size) if self.granularity == "group" else 1)

    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        """Bits of codes, scales, zero points and, where only ``kept`` weights are not zero, a mask."""
        groups = self.group_count(rows, columns)
        zero_points = 0 if self.symmetric else groups * self.bits
        mask = 0 if kept is None else rows * columns
        return (
            (rows * columns if kept is None else kept) * self.bits + groups * SCALE_BITS + zero_points + mask
        )


@final
@dataclass(frozen=True, eq=False)
class AffineWeight(Stored):
    """``w = (codes - zero_point) * scale``.

    Attributes:
        codes: (rows, columns) of ``form.dtype``, within ``form.grid``.
        scale: (1 or rows, groups of a row), above 0.
        zero_point: As ``scale``, or None when symmetric.
        shape: Of the decoded weight; rows is its first axis.
        mask: (rows, columns), True where a weight is kept; None where all are.
    """

    codes: Int[Tensor, "rows columns"]
    scale: Float[Tensor, "_ groups"]
    zero_point: Int[Tensor, "_ groups"] | None
    form: AffineForm
    shape: tuple[int, ...]
    mask: Bool[Tensor, "rows columns"] | None = None

    def decode(self) -> Tensor:
        """The weight as float32, of ``shape``."""
        columns = self.codes.shape[1]
        centred = self.codes.float()
        if self.zero_point is not None:
            centred = centred - over_columns(self.zero_point.float(), self.form, columns)
        weight = centred * over_columns(self.scale, self.form, columns)
        return (weight if self.mask is None else weight * self.mask).reshape(self.shape)


def over_columns(values: Float[Tensor, "_ groups"], form: AffineForm, columns: int) -> Float[Tensor, "_ _"]:
    """What groups have in common (scales, zero points), so that it broadcasts over (rows, columns)."""
    if form.granularity != "group":
        return values
    return values.repeat_interleave(form.group_size, 1)[:, :columns]


def encode_affine(
    weight: Tensor,
    form: AffineForm,
    mask: Bool[Tensor, " ..."] | None = None,
    *,
    least_scale: Float[Tensor, " rows"] | None = None,
    half_scales: bool = False,
    inputs: InputStatistics | None = None,
) -> AffineWeight:
    """Round a weight to nearest, ties to even.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        mask: Of the weight's shape; weights where it is False become 0.
        least_scale: By channel, the smallest scale allowed; None allows any.
        half_scales: Round scales up to float16, which a file can then hold without loss; all stay as they are
            if one is out of its normal range.
        inputs: For adaptive ranges, of what each weight is multiplied by, (1 or rows, columns).

    Raises:
        ValueError: The weight is empty or not finite, or ``least_scale`` is given for another form than
            symmetric by channel.
    """
    if least_scale is not None and not (form.symmetric and form.granularity == "channel"):
        raise ValueError("least_scale is for symmetric weights with one scale a channel")
    matrix, flat_mask = as_matrix(weight, mask)
    shares = None if inputs is None else _by_group(inputs, matrix, form)
    low, high = range_of(in_groups(matrix, form), form.grid, form.range_method, inputs=shares)
    scale, zero_point = form.grid.scale_and_zero_point(low, high)
    if least_scale is not None:
        scale = torch.maximum(scale, least_scale)
    if half_scales:
        scale = _rounded_up_to_half(scale)
    grid_shape = (1, 1) if form.granularity == "tensor" else (matrix.shape[0], -1)
    zero = None if form.symmetric else zero_point.to(form.dtype).reshape(grid_shape)
    return encode_on_grid(weight, form, scale.reshape(grid_shape), zero, flat_mask)


def encode_on_grid(
    weight: Tensor,
    form: AffineForm,
    scale: Float[Tensor, "_ groups"],
    zero_point: Int[Tensor, "_ groups"] | None,
    mask: Bool[Tensor, " ..."] | None = None,
) -> AffineWeight:
    """Round a weight to nearest, ties to even, with scales and zero points that are given.

    Args:
        weight: (rows, ...); columns are the other axes, flattened.
        form: What to store.
        scale: (1 or rows, groups of a row), above 0.
        zero_point: As ``scale``; None when symmetric.
        mask: Of the weight's shape; weights where it is False become 0.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    matrix, flat_mask = as_matrix(weight, mask)
    wide = over_columns(scale, form, matrix.shape[1])
    zero = torch.zeros(()) if zero_point is None else over_columns(zero_point.float(), form, matrix.shape[1])
    codes = form.grid.quantize(matrix, wide, zero).to(form.dtype)
    return AffineWeight(codes, scale, zero_point, form, tuple(weight.shape), flat_mask)


def as_matrix(
    weight: Tensor, mask: Bool[Tensor, " ..."] | None = None
) -> tuple[Float[Tensor, "rows columns"], Bool[Tensor, "rows columns"] | None]:
    """A weight as float32 rows, removed weights 0, and its mask likewise.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    if weight.numel() == 0 or weight.dim() == 0:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} cannot be quantized")
    matrix = weight.detach().float().reshape(weight.shape[0], -1)
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("the weight holds NaN or infinite values")
    if mask is None:
        return matrix, None
    flat = mask.reshape(matrix.shape)
    return matrix * flat, flat


def fits_half(values: Tensor) -> bool:
    """Whether float16 holds every value exactly."""
    return bool((values.half().float() == values).all())


def _rounded_up_to_half(scale: Float[Tensor, " count"]) -> Float[Tensor, " count"]:
    half = torch.finfo(torch.float16)
    if float(scale.min()) < half.tiny or float(scale.max()) > half.max / 2:
        return scale
    exact = scale.half().float() == scale
    return torch.where(exact, scale, (scale * (1 + half.eps)).half().float())


def in_groups(matrix: Float[Tensor, "rows columns"], form: AffineForm) -> Float[Tensor, "count size"]:
    """The values that share a scale, one group a row; a short last group is filled, its range unchanged."""
    if form.granularity == "tensor":
        return matrix.reshape(1, -1)
    if form.granularity == "channel":
        return matrix
    missing = -matrix.shape[1] % form.group_size
    padded = torch.cat([matrix, matrix[:, -1:].expand(-1, missing)], 1)
    return padded.reshape(-1, form.group_size)


def _by_group(
    inputs: InputStatistics, matrix: Float[Tensor, "rows columns"], form: AffineForm
) -> InputStatistics:
    mean = None if inputs.mean is None else _shares(inputs.mean.expand_as(matrix), form)
    return InputStatistics(_shares(inputs.energy.expand_as(matrix), form), mean)


def _shares(values: Float[Tensor, "rows columns"], form: AffineForm) -> Float[Tensor, "count size"]:
    """Statistics by group; what fills a short last group counts nothing."""
    if form.granularity != "group":
        return in_groups(values, form)
    return functional.pad(values, (0, -values.shape[1] % form.group_size)).reshape(-1, form.group_size)
