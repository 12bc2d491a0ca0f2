"""Rotations that spread single large values over all channels: Hadamard matrices with random signs.

Source: Ashkboos et al. 2024, arXiv:2404.00456, section 3 (random signs); Paley 1933 (orders that are no power
of 2).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def rotation(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """A random rotation, float64: Hadamard where that order is known, else any with equal chance."""
    known = hadamard(size)
    if known is None:
        return _any(size, generator)
    return known * _signs(size, generator) / math.sqrt(size)


def mean_keeping_rotation(size: int, generator: torch.Generator) -> Float[Tensor, "size size"]:
    """One that leaves a vector of ones as it is, so that the mean of what it rotates stays, and so does its
    distance from the mean."""
    known = hadamard(size)
    inner = torch.eye(size, dtype=torch.float64)
    if known is None:
        basis = _with_first_column_of_ones(size)
        inner[1:, 1:] = _any(size - 1, generator)
    else:
        basis = known * known[:, :1] / math.sqrt(size)
        inner[1:, 1:] *= _signs(size - 1, generator)
    return basis @ inner @ basis.T


def hadamard(size: int) -> Float[Tensor, "size size"] | None:
    """Entries 1 and -1, rows orthogonal; None where doubling and Paley's constructions reach no such size."""
    if size in (1, 2):
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:size, :size]
    if size < 1 or size % 4:
        return None
    found = _paley(size)
    if found is not None:
        return found
    half = hadamard(size // 2)
    return None if half is None else torch.kron(hadamard(2), half)  # type: ignore[arg-type]  # it is known


def _paley(size: int) -> Tensor | None:
    if _is_prime(size - 1):  # congruent 3 modulo 4, as the size is divisible by 4
        skew = _bordered(size - 1, -1)
        return skew + torch.eye(size, dtype=torch.float64)
    prime = size // 2 - 1
    if prime % 4 != 1 or not _is_prime(prime):
        return None
    pairs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    turned = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(_bordered(prime, 1), pairs) + torch.kron(
        torch.eye(prime + 1, dtype=torch.float64), turned
    )


def _bordered(prime: int, sign: int) -> Tensor:
    """Whether differences are squares modulo a prime (1), or not (-1), with a border of ones."""
    squares = torch.full((prime,), -1.0, dtype=torch.float64)
    squares[torch.arange(1, prime) ** 2 % prime] = 1
    squares[0] = 0
    places = torch.arange(prime)
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[1:, 1:] = squares[(places[:, None] - places) % prime]
    matrix[0, 1:], matrix[1:, 0] = 1, sign
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator).double() * 2 - 1


def _any(size: int, generator: torch.Generator) -> Tensor:
    """Of uniform distribution: the factor Q of normal values, with R's diagonal made positive."""
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    factor, upper = torch.linalg.qr(drawn)
    turned: Tensor = factor * upper.diagonal().sign()
    return turned


def _with_first_column_of_ones(size: int) -> Tensor:
    """Orthogonal, the first column constant: a reflection."""
    normal = torch.full((size,), -1 / math.sqrt(size), dtype=torch.float64)
    normal[0] += 1
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    normal /= normal.norm()
    return torch.eye(size, dtype=torch.float64) - 2 * torch.outer(normal, normal)
