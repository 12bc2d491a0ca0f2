"""What moves the parameters: two optimizers, and the learning rate over the training.

Source: Sutskever et al. 2013 (Nesterov momentum); Loshchilov and Hutter 2019, arXiv:1711.05101 (decoupled
weight decay), and 2017, arXiv:1608.03983, equation 5 (cosine, without restarts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from flyweight.recover.settings import TrainingSettings

MOMENTUM = 0.9
LEARNING_RATES = {"sgd": 0.01, "adamw": 1e-3}
# With codes kept there is little to overfit, and steps are parts of each scale's own size. In 200 steps, the
# 2-bit weights of stories260K went from +1.15 nats to +0.74 with this rate, and to +0.86 with 1e-3.
SCALES_RATE = 4e-3


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ParameterGroup:
    """Parameters that are trained alike.

    Attributes:
        what: In words, for reports: ``"weights"``.
        parameters: Each in one group only.
        decays: Whether weight decay makes them smaller.
        rate: Times the learning rate.
    """

    what: str
    parameters: Sequence[nn.Parameter]
    decays: bool = False
    rate: float = 1.0


def default_learning_rate(optimizer: str, tune: str) -> float:
    """The highest learning rate, of an optimizer that is settled, for what is tuned."""
    return SCALES_RATE if (optimizer, tune) == ("adamw", "scales") else LEARNING_RATES[optimizer]


def make_optimizer(groups: Sequence[ParameterGroup], settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer that ``settings`` names; ``auto`` must have been settled. Learning rates are at 0 yet."""
    described = [
        {
            "params": list(group.parameters),
            "weight_decay": settings.weight_decay if group.decays else 0.0,
            "rate": group.rate,
        }
        for group in groups
        if group.parameters
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(described, lr=0.0, momentum=MOMENTUM, nesterov=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(described, lr=0.0)
    raise ValueError(f"optimizer {settings.optimizer!r} is not settled")


def set_learning_rate(optimizer: torch.optim.Optimizer, highest: float, factor: float) -> None:
    """Set the learning rate of every group, in place."""
    for group in optimizer.param_groups:
        group["lr"] = highest * factor * group["rate"]


def rate_factor(done: float, warm_up: float) -> float:
    """Of the highest learning rate, with the part ``done`` of the training behind: up, then a cosine down."""
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1 + math.cos(math.pi * min((done - warm_up) / (1 - warm_up), 1.0)))
