"""Whether two forms of a model compute the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flyweight.errors import UnsupportedError
from flyweight.tensors.encoded import EncodedLayer, exchange
from flyweight.tensors.plain import attach_plain

if TYPE_CHECKING:
    from flyweight.model import Model

ROUNDING = 1e-4  # relative: above what another order of float32 sums makes, below what other code does
PROBE_EXAMPLES = 4


def relative_error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """‖found - expected‖ / ‖expected‖ of the worst output; infinity where they cannot be compared.

    Values that are not finite must be the same in both.
    """
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    return max(_relative_error(one, other) for one, other in zip(expected, found, strict=True))


def _relative_error(expected: Tensor, found: Tensor) -> float:
    wanted, got = expected.double().flatten(), found.double().flatten()
    finite = wanted.isfinite() & got.isfinite()
    if not torch.equal(wanted[~finite].nan_to_num(0.5), got[~finite].nan_to_num(0.5)):
        return float("inf")
    difference = float((got[finite] - wanted[finite]).norm())
    norm = float(wanted[finite].norm())
    if norm > 0:
        return difference / norm
    return float("inf") if difference > 0 else 0.0


def check_wrapping(model: Model, layers: Sequence[str], batch: Mapping[str, Tensor]) -> None:
    """Run the model with its layers as techniques leave them, but with their own weights.

    A model whose code asks for the kind of its layers may then compute something else. ``model`` is left as
    it was.

    Raises:
        UnsupportedError: It computes something else, or fails.
    """
    inputs = {name: value[:PROBE_EXAMPLES] for name, value in batch.items()}
    treats = f"the code of model {model.name!r} treats its layers in its own way"
    with unfused_attention():
        wanted = model.outputs(inputs)
        with _wrapped(model, layers):
            try:
                found = model.outputs(inputs)
            except Exception as error:  # whatever the user's forward() raises
                raise UnsupportedError(
                    f"{treats}: with encoded layers it fails with {type(error).__name__}"
                ) from error
    off = relative_error(wanted, found)
    if not off <= ROUNDING:
        raise UnsupportedError(
            f"{treats}: with encoded layers of the same weights it computes something else (relative error "
            f"{off:.3g})"
        )


@contextmanager
def _wrapped(model: Model, layers: Sequence[str]) -> Iterator[None]:
    root = model.module
    plain = [name for name in layers if not isinstance(root.get_submodule(name), EncodedLayer)]
    made = [attach_plain(root, name, "") for name in plain]
    try:
        yield
    finally:
        for layer in made:
            exchange(root, layer, layer.layer)


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Without torch's fused kernel for encoder layers, which gives other values at masked tokens."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
