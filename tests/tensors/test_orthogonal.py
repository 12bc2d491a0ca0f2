"""Hadamard matrices and the rotations made of them."""

from __future__ import annotations

import math

import pytest
import torch

from flyweight.tensors.orthogonal import hadamard, mean_keeping_rotation, rotation

KNOWN = [1, 2, 4, 12, 20, 28, 36, 60, 64, 128, 288, 384, 512, 768, 896, 1536]
UNKNOWN = [3, 5, 6, 7, 10, 18, 50, 92]  # 92 is a Hadamard order, but of another construction


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", KNOWN)
def test_hadamard_matrices_have_orthogonal_rows_of_ones_and_minus_ones(size):
    matrix = hadamard(size)
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", UNKNOWN)
def test_other_sizes_have_none(size):
    assert hadamard(size) is None


@pytest.mark.parametrize("make", [rotation, mean_keeping_rotation])
@pytest.mark.parametrize("size", [*KNOWN[:9], *UNKNOWN])
def test_rotations_are_orthogonal(make, size):
    matrix = make(size, generator())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [*KNOWN[:9], *UNKNOWN])
def test_a_mean_keeping_rotation_leaves_a_vector_of_ones(size):
    ones = torch.ones(size, dtype=torch.float64)
    torch.testing.assert_close(ones @ mean_keeping_rotation(size, generator()), ones)


@pytest.mark.parametrize("size", [64, 384])
def test_a_single_large_channel_is_spread_over_all(size):
    assert float(rotation(size, generator()).abs().max()) == pytest.approx(1 / math.sqrt(size))
    assert float(mean_keeping_rotation(size, generator()).abs().max()) < 6 / math.sqrt(size)


@pytest.mark.parametrize("make", [rotation, mean_keeping_rotation])
@pytest.mark.parametrize("size", [8, 10])
def test_the_seed_alone_decides(make, size):
    assert torch.equal(make(size, generator(3)), make(size, generator(3)))
    assert not torch.equal(make(size, generator(3)), make(size, generator(4)))
