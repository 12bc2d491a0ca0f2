"""How much entries of a weight, and parts of a group, matter: one function each; the least go first.

Scores of entries need the weight and what was gathered on calibration data; scores of parts add up those of
all entries of a part, of the weights that write it and of those that read it. All are at least 0, and larger
is more important. They compare within one weight or group; `normalised` makes those of several comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from flyweight.structure.dependencies import Group


@final
@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one weight, seen as a matrix; None where it was not gathered.

    Attributes:
        weight: Of the layer.
        gradient: Mean over examples of the loss's gradient.
        squared_gradient: Mean over examples of its square.
        input_energy: Mean square of what each column is multiplied with.
        inverse_curvature: Diagonal of the inverse of the inputs' second moments, damped.
    """

    weight: Float[Tensor, "rows columns"]
    gradient: Float[Tensor, "rows columns"] | None = None
    squared_gradient: Float[Tensor, "rows columns"] | None = None
    input_energy: Float[Tensor, " columns"] | None = None
    inverse_curvature: Float[Tensor, " columns"] | None = None


Scores = Float[Tensor, "rows columns"]


def l1(known: Evidence) -> Scores:
    """``|w|``. Source: Han et al. 2015, arXiv:1506.02626; Li et al. 2016, arXiv:1608.08710 (of filters)."""
    return known.weight.abs()


def l2(known: Evidence) -> Scores:
    """``w²``, of which parts add up the squared norm."""
    return known.weight.square()


def gradient(known: Evidence) -> Scores:
    """``|E[g]|``."""
    return _given(known.gradient, "gradients").abs()


def taylor(known: Evidence) -> Scores:
    """``|w E[g]|``: what the loss changes by, to first order.

    Source: Molchanov et al. 2019, arXiv:1906.10771. Differs: theirs is squared.
    """
    return (known.weight * _given(known.gradient, "gradients")).abs()


def fisher(known: Evidence) -> Scores:
    """``w² E[g²] / 2``: what the loss changes by, its curvature taken from the empirical Fisher matrix.

    Source: Theis et al. 2018, arXiv:1801.05787.
    """
    return known.weight.square() * _given(known.squared_gradient, "gradients") / 2


def wanda(known: Evidence) -> Scores:
    """``|w| ‖x‖``. Source: Sun et al. 2023, arXiv:2306.11695."""
    return known.weight.abs() * _given(known.input_energy, "inputs").sqrt()


def obs(known: Evidence) -> Scores:
    """``w² / [H⁻¹]ⱼⱼ``: what the output changes by once the others make up for it.

    Source: Hassibi and Stork 1992; Frantar and Alistarh 2023, arXiv:2301.00774.
    """
    return known.weight.square() / _given(known.inverse_curvature, "inputs")


def random(known: Evidence) -> Scores:
    """Of a generator with a fixed seed: what any other has to be better than."""
    return torch.rand(known.weight.shape, generator=torch.Generator().manual_seed(known.weight.numel()))


def _given(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"this importance needs {what} on calibration data")
    return values


CRITERIA: Mapping[str, Callable[[Evidence], Scores]] = {
    criterion.__name__: criterion for criterion in (l1, l2, gradient, taylor, fisher, wanda, obs, random)
}


def of_parts(group: Group, scores: Mapping[str, Tensor]) -> Float[Tensor, " parts"]:
    """The sum over all entries of each part, of every weight that writes or reads it.

    Args:
        group: Of the network.
        scores: Weight's name to scores in the weight's own shape; weights that are missing count nothing.
    """
    total = torch.zeros(len(group))
    for member in group.members:
        own = scores.get(member.tensor)
        if own is None or member.role == "follows":
            continue
        others = [axis for axis in range(own.dim()) if axis != member.axis]
        total += own.sum(others)[member.index].sum(1)
    return total


def normalised(scores: Float[Tensor, " parts"]) -> Float[Tensor, " parts"]:
    """Scores over their mean, so that those of several groups compare; all 1 where all are 0."""
    mean = scores.mean()
    return scores / mean if float(mean) > 0 else torch.ones_like(scores)
