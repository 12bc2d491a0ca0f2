"""Rounding one layer towards the outputs of the float model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from flyweight.measure.curvature import Moments
from flyweight.tensors import rounding
from flyweight.tensors.affine import AffineForm
from flyweight.tensors.binary import SIGNS, BinaryForm, encode_binary
from flyweight.tensors.ranges import Grid
from flyweight.tensors.rounding import Codes, Rounded

# Of the scale that is best for each weight by itself: where columns make up for each other, another may be
# better. Those and the neighbouring zero points took 3 to 20 % off the output error of 3-bit convolutions.
OTHER_SCALES = (0.85, 0.92, 1.08)
OTHER_ZERO_POINTS = (-1, 1)
TERNARY = Grid(2, symmetric=True)


@final
@dataclass(frozen=True)
class Effort:
    """How far rounding goes.

    Attributes:
        damping: Added to the second moments, as a share of the mean of their diagonal.
        rounds: Refits of the scales, each followed by sweeps over all codes; with 0, other scales are not
            tried either.
        sweeps: Of coordinate descent in each round.
    """

    damping: float = rounding.DAMPING
    rounds: int = 4
    sweeps: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.damping <= rounding.MOST_DAMPING:
            raise ValueError(f"damping must be above 0 and at most 1, got {self.damping}")
        if self.rounds < 0 or self.sweeps < 1:
            raise ValueError(f"rounds must be at least 0 and sweeps 1, got {self.rounds} and {self.sweeps}")


def round_to_outputs(
    weight: Tensor, moments: Moments, form: AffineForm, effort: Effort, mask: Tensor | None = None
) -> Rounded:
    """The weight rounded so that the layer puts out what the float layer does.

    Args:
        weight: (rows, ...) of the float layer, removed weights 0.
        moments: Of what the layer reads.
        form: What to store.
        effort: How far to go.
        mask: (rows, columns), False where a weight is removed.
    """
    parts, columns = moments.scatter.shape[:2]
    shaped = weight.detach().float().reshape(parts, -1, columns)
    kept = None if mask is None else mask.reshape(shaped.shape).float()
    moment, target = _problem(shaped, moments, effort)
    one_grid = form.granularity == "tensor"
    best = rounding.searched(
        target if kept is None else target * kept,
        form.grid,
        moment.diagonal(dim1=1, dim2=2),
        group_size=form.group_size if form.granularity == "group" else columns,
        one_grid=one_grid,
        kept=kept,
    )
    own_grids = form.granularity == "channel"
    return _descended(target, form.grid, best, moment, effort, refit=not one_grid, other_grids=own_grids)


def round_to_signs(weight: Tensor, moments: Moments, form: BinaryForm, effort: Effort) -> Rounded:
    """The same with the codes -1 and 1, and 0 where ternary; no weight is removed."""
    parts, columns = moments.scatter.shape[:2]
    moment, target = _problem(weight.detach().float().reshape(parts, -1, columns), moments, effort)
    stored = encode_binary(target.flatten(0, 1), form)
    codes, scale = (v.float().reshape(*target.shape[:2], -1) for v in (stored.signs, stored.scale))
    group = torch.arange(columns) // (form.group_size or columns)
    start = Rounded(codes, scale, torch.zeros_like(scale), group)
    return _descended(
        target,
        SIGNS,
        start,
        moment,
        effort,
        refit=form.scaled,
        other_grids=form.scaled and not form.group_size,
    )


def _problem(weight: Tensor, moments: Moments, effort: Effort) -> tuple[Tensor, Tensor]:
    """The damped moment of the inputs, and the weight to be rounded, (parts, rows, columns)."""
    own, wanted = moments.own, moments.wanted
    moment = rounding.damped(own, effort.damping, moments.noise)
    return moment, weight if wanted is None else rounding.aimed(weight, moment, own, wanted)


def _descended(
    target: Tensor,
    grid: Codes,
    best: Rounded,
    moment: Tensor,
    effort: Effort,
    *,
    refit: bool,
    other_grids: bool,
) -> Rounded:
    """From codes to nearest to those of least output error."""
    found = rounding.compensated(target, grid, best, moment)
    best = rounding.better(target, best, found, moment)
    if other_grids and effort.rounds:
        for start in _other_grids(best, grid):
            found = rounding.compensated(target, grid, start, moment)
            found = rounding.descend(target, grid, rounding.refit(target, found, moment), moment)
            best = rounding.better(target, best, found, moment)
    for _ in range(effort.rounds):
        start = rounding.refit(target, best, moment) if refit else best
        found = rounding.descend(target, grid, start, moment, effort.sweeps)
        best = rounding.better(target, best, found, moment)
    return best


def _other_grids(start: Rounded, grid: Codes) -> Iterator[Rounded]:
    for ratio in OTHER_SCALES:
        yield replace(start, scale=start.scale * ratio)
    for shift in () if grid.symmetric else OTHER_ZERO_POINTS:
        yield replace(start, zero_point=(start.zero_point + shift).clamp(grid.lowest, grid.highest))


def as_stored(rounded: Rounded, form: AffineForm) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point as `AffineEncoder` takes them: (1 or rows, groups)."""
    groups = rounded.scale.shape[-1]
    scale, zero = (value.reshape(-1, groups) for value in (rounded.scale, rounded.zero_point))
    if form.granularity == "tensor":
        scale, zero = scale[:1], zero[:1]
    return scale.contiguous(), None if form.symmetric else zero.contiguous()


def bias_shift(weight: Tensor, rounded: Rounded, moments: Moments) -> Tensor:
    """(rows,), what the bias has to take for the mean output to be that of the float layer."""
    parts, columns = moments.scatter.shape[:2]
    shaped = weight.detach().double().reshape(parts, -1, columns)
    got = (rounded.decode().double() @ moments.mean.double()[..., None])[..., 0]
    wanted = moments.wanted_mean
    if wanted is None:
        wanted = (shaped @ moments.mean.double()[..., None])[..., 0]
    return (wanted - got).float().reshape(-1)
