"""What calibration data say of a network's parts: how much its outputs would change without them.

No labels are needed: where a model puts out logits, labels are drawn from its own probabilities, and its
outputs are weighted with random signs otherwise. Squares of such gradients, on average, are the curvature of
the divergence, or of the squared error, from the network as it is (the Fisher information).

Source: Molchanov et al. 2019, arXiv:1906.10771 (a factor on each part, and its gradient); Liu et al. 2021,
arXiv:2108.00708 (Fisher information of coupled channels).
Differs: labels are the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, fx

from flyweight.measure.agreement import unfused_attention
from flyweight.model import Model, tensors_of
from flyweight.structure.dependencies import Group, Member

Outputs = Literal["logits", "values"]


def part_gradients(
    graph: fx.GraphModule,
    model: Model,
    several: Sequence[Group],
    batches: Sequence[Mapping[str, Tensor]],
    *,
    outputs: Outputs,
    draws: int = 1,
    seed: int = 0,
) -> list[Float[Tensor, "samples parts"]]:
    """Of each group, the loss's derivatives with respect to a factor on each part, batch by batch.

    Args:
        graph: On which the groups were found.
        model: Whose graph it is.
        several: The groups.
        batches: Calibration batches, input name to (batch, ...).
        outputs: What the first output is.
        draws: Of labels or signs, for each batch.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = dict(graph.named_parameters())
    names = sorted({m.tensor for group in several for m in _carriers(group)})
    found: list[list[Tensor]] = [[] for _ in several]
    for batch in batches:
        for _ in range(draws):
            with torch.enable_grad(), unfused_attention():
                output = tensors_of(graph(**batch), model.name)[0]
                loss = _loss(output, outputs, generator)
                gradients = torch.autograd.grad(loss, [weights[name] for name in names], allow_unused=True)
            products = {
                name: weights[name].detach() * gradient
                for name, gradient in zip(names, gradients, strict=True)
                if gradient is not None
            }
            for own, group in zip(found, several, strict=True):
                own.append(_of_parts(group, products))
    return [
        torch.stack(own) if own else torch.zeros(0, len(g)) for own, g in zip(found, several, strict=True)
    ]


def taylor_scores(gradients: Float[Tensor, "samples parts"]) -> Float[Tensor, " parts"]:
    """``E|∂L/∂factor|``: the change of the loss to first order."""
    return gradients.abs().mean(0)


def fisher_scores(gradients: Float[Tensor, "samples parts"]) -> Float[Tensor, " parts"]:
    """``E[(∂L/∂factor)²] / 2``: the change of the outputs' divergence to second order."""
    return gradients.square().mean(0) / 2


def _carriers(group: Group) -> list[Member]:
    """The members that all of a part passes through: those that read it, or else those that write it."""
    reading = [member for member in group.members if member.role == "reads"]
    return reading or [member for member in group.members if member.role == "writes"]


def _of_parts(group: Group, products: Mapping[str, Tensor]) -> Float[Tensor, " parts"]:
    total = torch.zeros(len(group))
    for member in _carriers(group):
        own = products.get(member.tensor)
        if own is not None:
            others = [axis for axis in range(own.dim()) if axis != member.axis]
            total += own.sum(others)[member.index].sum(1)
    return total


def _loss(output: Tensor, kind: Outputs, generator: torch.Generator) -> Tensor:
    """One whose gradient is random, with the curvature as its covariance."""
    if kind == "values":
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
        return (output.float() * signs).sum()
    logarithms = output.float().log_softmax(-1).reshape(-1, output.shape[-1])
    labels = torch.multinomial(logarithms.detach().exp(), 1, generator=generator)
    return -logarithms.gather(1, labels).sum()
