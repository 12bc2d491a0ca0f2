"""Whether the exported file computes what the PyTorch reference computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flyweight.core.report import Parity
from flyweight.errors import ParityError


def parity(
    reference: Sequence[Sequence[np.ndarray]],
    file: Sequence[Sequence[np.ndarray]],
    shapes: Sequence[str],
    *,
    tolerance: float,
) -> Parity:
    """The largest error over all outputs and checked shapes, each output held to the tolerance by itself.

    Args:
        reference: One entry a checked shape: the reference's outputs.
        file: The same of the file.
        shapes: The input shapes checked, as text: ``"input 2x3x32x32"``.
        tolerance: Largest allowed root mean square of the difference over that of the reference.

    Raises:
        ParityError: An output is off by more, has another shape, is NaN, or is missing.
        ValueError: The arguments are not of one length, at least 1, or ``tolerance`` is not above 0.
    """
    if not len(reference) == len(file) == len(shapes) or not shapes:
        raise ValueError(
            f"parity needs outputs for each shape, got {len(reference)}, {len(file)}, {len(shapes)}"
        )
    if tolerance <= 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")
    worst_relative, worst_absolute = 0.0, 0.0
    for shape, expected, found in zip(shapes, reference, file, strict=True):
        if len(expected) != len(found):
            raise ParityError(
                f"the file has {len(found)} outputs at {shape}, the PyTorch reference {len(expected)}"
            )
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            where = f"output {index} of the file at {shape}"
            relative, absolute = _errors(one, other, where)
            if not relative <= tolerance:
                raise ParityError(
                    f"{where} is off from the PyTorch reference: its relative error {relative:.3g} is above "
                    f"{tolerance:.3g} (largest difference {absolute:.3g})"
                )
            worst_relative, worst_absolute = max(worst_relative, relative), max(worst_absolute, absolute)
    return Parity(
        relative_error=worst_relative, max_abs=worst_absolute, tolerance=tolerance, shapes=tuple(shapes)
    )


def _errors(expected: np.ndarray, found: np.ndarray, where: str) -> tuple[float, float]:
    """(relative root mean square, largest absolute) difference; equal infinities do not differ."""
    if expected.shape != found.shape:
        raise ParityError(f"{where} has shape {found.shape}, the PyTorch reference {expected.shape}")
    wanted, got = expected.astype(np.float64), found.astype(np.float64)
    for values, whose in ((wanted, "of the PyTorch reference"), (got, "")):
        if np.isnan(values).any():
            raise ParityError(f"{where} holds NaN{' in that ' + whose if whose else ''}")
    finite = np.isfinite(wanted) & np.isfinite(got)
    if not np.array_equal(wanted[~finite], got[~finite]):
        raise ParityError(f"{where} is infinite at other places than the PyTorch reference")
    difference = wanted[finite] - got[finite]
    if not difference.any():
        return 0.0, 0.0
    reference_norm = float(np.linalg.norm(wanted[finite]))
    relative = float(np.linalg.norm(difference)) / reference_norm if reference_norm > 0 else float("inf")
    return relative, float(np.abs(difference).max())
