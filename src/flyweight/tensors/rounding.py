"""Rounding a weight so that the layer's output, not the weight itself, stays close.

The squared output error of a linear layer is ``(w - v) H (w - v)^T`` summed over rows, with ``H`` the second
moment of its inputs. `compensated` rounds column by column and lets the columns that are left make up for the
error; `descend` then takes each code in turn to its best value while all others stay; `refit` sets the scales
to their least-squares values for the codes.

Source: Frantar et al. 2022, arXiv:2210.17323 (GPTQ: order, lazy blocks, Cholesky factor); Behdin et al. 2023,
arXiv:2309.01885 (QuantEase: coordinate descent on the same error).
Differs: all parts of a grouped convolution are solved at once; scales are refitted between the sweeps, all
those of a row jointly; a step that does not lower a row's error is taken back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from flyweight.tensors.ranges import Grid

BLOCK = 128  # columns whose errors are passed on together
DAMPING = 0.01  # of the mean of the diagonal, as in the source
MOST_DAMPING = 1.0
REFIT_RIDGE = 1e-6  # of the mean of the diagonal: scales of groups that always move together stay apart
# Candidate ranges from 100 % down to 30 % of min-max; zero points up to two codes beside the range's own.
RANGE_STEPS = 29
RANGE_SHRINK = 0.025
ZERO_POINT_SHIFTS = (0, -1, 1, -2, 2)
SHIFTED_BITS = 4  # up to which the shifts are tried: finer grids gain nothing


@runtime_checkable
class Codes(Protocol):
    """What codes may be: those of a `Grid`, or signs."""

    @property
    def symmetric(self) -> bool:
        """No zero point."""

    @property
    def lowest(self) -> int:
        """Of the codes."""

    @property
    def highest(self) -> int:
        """Of the codes."""

    def quantize(
        self, values: Float[Tensor, "*shape"], scale: Tensor, zero_point: Tensor
    ) -> Float[Tensor, "*shape"]:
        """The nearest codes of values."""

    def whole(self, steps: Tensor) -> Tensor:
        """The nearest difference of two codes, whether there are such or not, in place."""


@final
@dataclass(frozen=True, eq=False)
class Rounded:
    """Codes of a weight and the grids they are on; decoded, it is ``(codes - zero_point) * scale``.

    Attributes:
        codes: Whole floats.
        scale: Of each group of columns, above 0.
        zero_point: As ``scale``, whole floats; 0 where the grid is symmetric.
        group: Column to its group.
        kept: 1 where a weight is kept, 0 where it is removed.
    """

    codes: Float[Tensor, "parts rows columns"]
    scale: Float[Tensor, "parts rows groups"]
    zero_point: Float[Tensor, "parts rows groups"]
    group: Int[Tensor, " columns"]
    kept: Float[Tensor, "parts rows columns"] | None = None

    @property
    def centred(self) -> Float[Tensor, "parts rows columns"]:
        """Decoded, in steps of the scale."""
        centred = self.codes - self.zero_point[..., self.group]
        return centred if self.kept is None else centred * self.kept

    def decode(self) -> Float[Tensor, "parts rows columns"]:
        """The weight."""
        return self.centred * self.scale[..., self.group]


def output_error(
    weight: Float[Tensor, "parts rows columns"],
    rounded: Float[Tensor, "parts rows columns"],
    moment: Float[Tensor, "parts columns columns"],
) -> Float[Tensor, "parts rows"]:
    """Squared output error of each row."""
    difference = (weight - rounded).double()
    return ((difference @ moment.double()) * difference).sum(-1)


def damped(
    moment: Float[Tensor, "parts columns columns"],
    damping: float = DAMPING,
    noise: Float[Tensor, " parts"] | None = None,
) -> Float[Tensor, "parts columns columns"]:
    """The moment plus a share of the mean of its diagonal, enough of it to be inverted; float64.

    Inputs that calibration never saw get that share too: their weights are rounded to nearest. ``noise`` is
    added as well, so that inputs which never change count as such.
    """
    moment = moment.double()
    least = torch.zeros(len(moment), dtype=torch.float64) if noise is None else noise.double()
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    while True:
        result = moment.clone()
        result.diagonal(dim1=-2, dim2=-1).add_((damping * mean + least)[:, None])
        if not int(torch.linalg.cholesky_ex(result).info.any()):
            return result
        if damping >= MOST_DAMPING:
            raise ValueError("the second moments of the inputs are not finite")
        damping = min(damping * 10, MOST_DAMPING)


def searched(
    weight: Float[Tensor, "parts rows columns"],
    grid: Grid,
    importance: Float[Tensor, "parts columns"],
    *,
    group_size: int,
    one_grid: bool = False,
    kept: Float[Tensor, "parts rows columns"] | None = None,
) -> Rounded:
    """Each weight rounded to nearest, on the grids whose squared error weighted by ``importance`` is least.

    Args:
        weight: What to round; removed weights are 0.
        grid: What the codes may be.
        importance: Of each column, the second moment of its input.
        group_size: Columns that share a scale.
        one_grid: One scale for the whole weight; ``group_size`` is then the number of columns.
        kept: 0 where a weight is removed.
    """
    parts, rows, columns = weight.shape
    missing = -columns % group_size
    groups = functional.pad(weight, (0, missing)).reshape(parts, rows, -1, group_size)
    share = functional.pad(importance.float(), (0, missing)).reshape(parts, 1, -1, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    if one_grid:
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    best = (torch.full_like(low, torch.inf), *grid.scale_and_zero_point(low, high))
    for scale, zero in _candidates(grid, low, high):
        codes = grid.quantize(groups, scale[..., None], zero[..., None])
        error = (((codes - zero[..., None]) * scale[..., None] - groups).square() * share).sum(-1)
        error = error.sum().expand_as(error) if one_grid else error
        takes = error < best[0]
        now = (error, scale, zero)
        best = tuple(torch.where(takes, new, old) for new, old in zip(now, best, strict=True))  # type: ignore[assignment]
    group = torch.arange(columns) // group_size
    empty = Rounded(weight, best[1], best[2], group, kept)
    return replace(empty, codes=nearest(weight, grid, empty))


def _candidates(grid: Grid, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(scale, zero point) of ranges within [low, high]."""
    shifts = ZERO_POINT_SHIFTS if not grid.symmetric and grid.bits <= SHIFTED_BITS else (0,)
    for step in range(RANGE_STEPS):
        ratio = 1 - RANGE_SHRINK * step
        scale, zero = grid.scale_and_zero_point(low * ratio, high * ratio)
        for shift in shifts:
            yield scale, (zero + shift).clamp(grid.lowest, grid.highest)


def aimed(
    weight: Float[Tensor, "parts rows columns"],
    moment: Float[Tensor, "parts columns columns"],
    own: Float[Tensor, "parts columns columns"],
    wanted: Float[Tensor, "parts rows columns"],
) -> Float[Tensor, "parts rows columns"]:
    """The weight that, on the quantized model's inputs, comes closest to the outputs that are wanted.

    Args:
        weight: Of the float model, which what damping adds draws towards.
        moment: Of the quantized model's inputs, from `damped`.
        own: The same before it was damped.
        wanted: Of the wanted outputs with the quantized model's inputs.
    """
    added = (moment.diagonal(dim1=1, dim2=2) - own.diagonal(dim1=1, dim2=2))[:, None]
    target = wanted + weight.double() * added
    solved = torch.cholesky_solve(target.transpose(1, 2), torch.linalg.cholesky(moment))
    return solved.transpose(1, 2).float()


def nearest(
    weight: Float[Tensor, "parts rows columns"], grid: Codes, start: Rounded
) -> Float[Tensor, "parts rows columns"]:
    """Codes of each weight by itself."""
    return grid.quantize(weight, start.scale[..., start.group], start.zero_point[..., start.group])


def compensated(
    weight: Float[Tensor, "parts rows columns"],
    grid: Codes,
    start: Rounded,
    moment: Float[Tensor, "parts columns columns"],
) -> Rounded:
    """Codes found column by column, those of largest moment first.

    Args:
        weight: What to round.
        grid: What the codes may be.
        start: Its scales and zero points are used.
        moment: Positive definite: from `damped`.
    """
    order = moment.diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment[:, order[:, None], order]))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    columns = _Columns(grid, start, order)
    left, codes = _by_column(weight[..., order]), torch.empty_like(columns.step)
    pushes, reciprocal = factor.permute(1, 2, 0)[..., None], 1 / _by_column(factor.diagonal(dim1=1, dim2=2))
    for first in range(0, len(left), BLOCK):
        last = min(first + BLOCK, len(left))
        errors = torch.empty_like(left[first:last])
        for j in range(first, last):
            code = columns.nearest(left[j] / columns.scale[j], j)
            codes[j] = code
            error = torch.mul(left[j] - code * columns.step[j], reciprocal[j], out=errors[j - first])
            left[j + 1 : last].addcmul_(pushes[j, j + 1 : last], error, value=-1)
        left[last:] -= _pushed(factor[:, first:last, last:], errors)
    return replace(start, codes=_by_row(codes)[..., order.argsort()] + start.zero_point[..., start.group])


def descend(
    weight: Float[Tensor, "parts rows columns"],
    grid: Codes,
    start: Rounded,
    moment: Float[Tensor, "parts columns columns"],
    sweeps: int = 1,
) -> Rounded:
    """Codes taken one column after the other to where the output error is least, the others kept."""
    moment = moment.float()
    columns = _Columns(grid, start, torch.arange(weight.shape[-1]))
    codes, pushes = (
        _by_column(start.codes - start.zero_point[..., start.group]),
        moment.permute(1, 2, 0)[..., None],
    )
    diagonal = _by_column(moment.diagonal(dim1=1, dim2=2))
    steps = (1 / (diagonal * columns.scale)).clamp(
        max=torch.finfo(torch.float32).max
    )  # a code's for a pull of 1
    for _ in range(sweeps):
        off = weight - _by_row(codes * columns.step)
        pull = _by_column(off @ moment)  # of the error on each column
        for first in range(0, len(pull), BLOCK):
            last = min(first + BLOCK, len(pull))
            moved = torch.empty_like(pull[first:last])
            for j in range(first, last):
                code = columns.nearest(torch.addcmul(codes[j], pull[j], steps[j]), j)
                change = torch.mul(code - codes[j], columns.step[j], out=moved[j - first])
                pull[j + 1 : last].addcmul_(pushes[j, j + 1 : last], change, value=-1)
                codes[j] = code
            pull[last:] -= _pushed(moment[:, first:last, last:], moved)
    return replace(start, codes=_by_row(codes) + start.zero_point[..., start.group])


@final
class _Columns:
    """The grids of a weight, column after column: what a step of one column needs, side by side in memory.

    Attributes:
        scale: (columns, parts, rows).
        step: The same; 0 where a weight is removed.
    """

    def __init__(self, grid: Codes, start: Rounded, order: Tensor) -> None:
        group = start.group[order]
        zero = _by_column(start.zero_point[..., group])
        self.scale = _by_column(start.scale[..., group])
        self.step = self.scale if start.kept is None else self.scale * _by_column(start.kept[..., order])
        self._whole = grid.whole
        self._lowest, self._highest = grid.lowest - zero, grid.highest - zero

    def nearest(self, values: Tensor, column: int) -> Tensor:
        """(parts, rows) whole steps that the grid of a column has; ``values`` is changed."""
        return self._whole(values).clamp_(self._lowest[column], self._highest[column])


def _by_column(values: Tensor) -> Tensor:
    """(columns, parts, rows) from (parts, rows, columns); (columns, parts, 1) from (parts, columns)."""
    wide = values if values.dim() == 3 else values[:, None]
    return wide.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)


def _by_row(values: Tensor) -> Tensor:
    return values.permute(1, 2, 0)


def _pushed(factors: Tensor, changes: Tensor) -> Tensor:
    """(rest, parts, rows): what changes of a block, (block, parts, rows), do to columns after it."""
    return (factors.transpose(1, 2) @ changes.transpose(0, 1)).transpose(0, 1)


def refit(
    weight: Float[Tensor, "parts rows columns"],
    start: Rounded,
    moment: Float[Tensor, "parts columns columns"],
) -> Rounded:
    """Scales of least output error for the codes, all groups of a row solved together.

    A row of which a scale would not be above 0 stays as it is.
    """
    groups = start.scale.shape[-1]
    moment, centred = moment.double(), start.centred.double()
    normal = torch.zeros(*start.scale.shape, groups, dtype=torch.float64)
    right = torch.zeros_like(start.scale, dtype=torch.float64)
    for group in range(groups):
        columns = (start.group == group).nonzero()[:, 0]
        pushed = centred[..., columns] @ moment[:, columns]
        normal[..., group, :].index_add_(-1, start.group, pushed * centred)
        right[..., group] = (pushed * weight).sum(-1)
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    empty = diagonal <= 0  # all codes of the group are 0: its scale plays no part
    ridge = REFIT_RIDGE * diagonal.mean(-1, keepdim=True)
    normal = normal + torch.diag_embed(torch.where(empty, torch.ones_like(right), ridge))
    solved = torch.linalg.solve(normal, torch.where(empty, start.scale.double(), right)[..., None])[..., 0]
    good = (solved.isfinite() & (solved > torch.finfo(torch.float32).tiny)).all(-1, keepdim=True)
    return replace(start, scale=torch.where(good, solved, start.scale.double()).float())


def better(
    weight: Float[Tensor, "parts rows columns"],
    one: Rounded,
    other: Rounded,
    moment: Float[Tensor, "parts columns columns"],
) -> Rounded:
    """Row by row, the one of the smaller output error; the first where they are equal."""
    first, second = (output_error(weight, r.decode(), moment) for r in (one, other))
    takes = (second < first)[..., None]
    return replace(
        one,
        codes=torch.where(takes, other.codes, one.codes),
        scale=torch.where(takes, other.scale, one.scale),
        zero_point=torch.where(takes, other.zero_point, one.zero_point),
    )
