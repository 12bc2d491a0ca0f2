"""Neighbouring columns of a row that share a scale, as rows of their own."""

from __future__ import annotations

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

LEAST_GROUP_SIZE = 2


def group_count(columns: int, group_size: int) -> int:
    """Groups of a row; the last may be shorter. With ``group_size`` 0 a row is one group."""
    return -(-columns // group_size) if group_size else 1


def columns_of_group(columns: int, group_size: int) -> int:
    """Columns of the first group of a row."""
    return min(group_size, columns) or columns


def check_group_size(group_size: int) -> None:
    """Raises ValueError unless groups have columns enough."""
    if group_size < LEAST_GROUP_SIZE:
        raise ValueError(f"group_size must be at least {LEAST_GROUP_SIZE}, got {group_size}")


def grouped(matrix: Shaped[Tensor, "rows columns"], group_size: int) -> Shaped[Tensor, "rows groups size"]:
    """A copy whose short last groups are filled with zeros."""
    rows, columns = matrix.shape
    size = group_size or columns
    return F.pad(matrix, (0, -columns % size)).reshape(rows, -1, size)


def ungrouped(groups: Shaped[Tensor, "rows groups size"], columns: int) -> Shaped[Tensor, "rows columns"]:
    """The inverse of `grouped`."""
    return groups.flatten(1)[:, :columns]


def masked_mean(values: Tensor, kept: Tensor) -> Tensor:
    """Mean along the last axis of what is kept, summed in float64; 0 where nothing is."""
    total = torch.where(kept, values, 0.0).sum(-1, dtype=torch.float64)
    return (total / kept.sum(-1).clamp_min(1)).float()
