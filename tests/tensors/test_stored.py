"""Size and density follow from form, shape and mask."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flyweight.tensors.stored import Stored


@dataclass(frozen=True)
class Bytes:
    def stored_bits(self, rows: int, columns: int, *, kept: int | None = None) -> int:
        return 8 * rows * columns if kept is None else 8 * kept + rows * columns


@dataclass(frozen=True, eq=False)
class Weight(Stored):
    form: Bytes
    shape: tuple[int, ...]
    mask: Tensor | None = None


@pytest.mark.parametrize(("shape", "size"), [((6,), (6, 1)), ((6, 4), (6, 4)), ((6, 2, 3, 3), (6, 18))])
def test_columns_are_all_axes_but_the_first(shape: tuple[int, ...], size: tuple[int, int]):
    weight = Weight(Bytes(), shape)
    assert weight.size == size
    assert weight.nbytes == size[0] * size[1]
    assert weight.density == 1.0


def test_removed_weights_are_charged_for_the_mask_alone():
    mask = torch.tensor([[True, False, False, False], [True, True, False, False]])
    weight = Weight(Bytes(), (2, 4), mask)
    assert weight.density == 3 / 8
    assert weight.nbytes == 3 + 1
