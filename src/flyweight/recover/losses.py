"""What the original's outputs teach: a loss for each kind of output.

Source: Hinton et al. 2015, arXiv:1503.02531, section 2 (softened probabilities).
Differs: the loss of embeddings and values is relative to their spread, so that one learning rate suits all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Loss = Float[Tensor, ""]

# What the models of a task put out; those of any other put out values.
OUTPUTS: Mapping[str, str] = {
    "classification": "logits",
    "language_model": "logits",
    "similarity": "embeddings",
}
CLASS_TEMPERATURE = 4.0
# Of a language model all probabilities count: scales of stories260K tuned with W2 end at +0.74 nats, and at
# +0.86 with a temperature of 4.
TOKEN_TEMPERATURE = 1.0
PROBABILITY_SUM_TOLERANCE = 0.01


@runtime_checkable
class Distillation(Protocol):
    """A loss between the first outputs of two models on one batch."""

    def __call__(
        self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Tensor], labels: Tensor | None
    ) -> Loss:
        """The loss, a mean over the batch; 0 where both put out the same and labels have no part in it."""


def soft_labels(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Loss:
    """``T² · KL(softmax(teacher / T) ‖ softmax(student / T))``; T² keeps gradients of one size for all T."""
    return temperature**2 * divergence(student / temperature, teacher / temperature).mean()


def hard_labels(student: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Loss:
    """Cross-entropy."""
    return F.cross_entropy(student, labels)


def divergence(
    student: Float[Tensor, "*places classes"], teacher: Float[Tensor, "*places classes"]
) -> Float[Tensor, "*places"]:
    """KL divergence, in nats, of the student's probabilities from the teacher's, from logits."""
    wanted = teacher.log_softmax(-1)
    # a masked class has probability 0 and a logarithm of minus infinity; it counts nothing
    difference = (wanted - student.log_softmax(-1)).masked_fill(wanted.isneginf(), 0.0)
    return (wanted.exp() * difference).sum(-1)


def token_labels(
    student: Float[Tensor, "batch tokens vocabulary"],
    teacher: Float[Tensor, "batch tokens vocabulary"],
    kept: Bool[Tensor, "batch tokens"] | None,
    temperature: float,
) -> Loss:
    """`soft_labels` of each token, the mean over those that are ``kept`` (None is all)."""
    each = divergence(student / temperature, teacher / temperature)
    if kept is None:
        return temperature**2 * each.mean()
    return temperature**2 * (each * kept).sum() / kept.sum().clamp_min(1)


def alike(student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"]) -> Loss:
    """1 - cosine, and the squared error over the teacher's mean square: direction and length."""
    cosine = F.cosine_similarity(student, teacher, dim=1).mean()
    return 1 - cosine + close(student, teacher, teacher.square().mean())


def close(
    student: Float[Tensor, "*shape"], teacher: Float[Tensor, "*shape"], scale: Float[Tensor, ""]
) -> Loss:
    """Mean squared error over ``scale``."""
    return (student - teacher).square().mean() / scale.clamp_min(torch.finfo(torch.float32).tiny)


@final
@dataclass(frozen=True)
class SoftLabels:
    """Of classifiers: soft labels, with the true ones for a part; of tokens, soft labels alone.

    Attributes:
        temperature: See `soft_labels`.
        label_weight: Part of the loss that true labels have, where there are some.
        probabilities: Whether the models put out probabilities, not logits.
    """

    temperature: float
    label_weight: float = 0.0
    probabilities: bool = False

    def __call__(
        self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Tensor], labels: Tensor | None
    ) -> Loss:
        """See `Distillation`."""
        student, teacher = self._logits(student), self._logits(teacher)
        if student.dim() == 3:
            mask = inputs.get("attention_mask")
            return token_labels(student, teacher, None if mask is None else mask > 0, self.temperature)
        loss = soft_labels(student, teacher, self.temperature)
        if labels is None or not self.label_weight:
            return loss
        return (1 - self.label_weight) * loss + self.label_weight * hard_labels(student, labels)

    def _logits(self, outputs: Tensor) -> Tensor:
        tiny = torch.finfo(torch.float32).tiny
        return outputs.clamp_min(tiny).log() if self.probabilities else outputs


@final
@dataclass(frozen=True)
class Embeddings:
    """Of models that embed: see `alike`."""

    def __call__(
        self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Tensor], labels: Tensor | None
    ) -> Loss:
        """See `Distillation`."""
        return alike(student.flatten(1), teacher.flatten(1))


@final
@dataclass(frozen=True)
class Values:
    """Of numbers of any other kind.

    Attributes:
        spread: Their variance in the teacher's outputs.
    """

    spread: float

    def __call__(
        self, student: Tensor, teacher: Tensor, inputs: Mapping[str, Tensor], labels: Tensor | None
    ) -> Loss:
        """See `Distillation`."""
        return close(student, teacher, teacher.new_tensor(self.spread))


def distillation_for(
    task: str,
    outputs: Float[Tensor, " ..."],
    *,
    label_weight: float,
    temperature: float | None = None,
    kind: str = "auto",
) -> Distillation:
    """The loss for a task, by its name, or for outputs whose ``kind`` is told.

    Args:
        task: Name in the catalog; any other is a task with values.
        outputs: The original's on a few examples.
        label_weight: See `TrainingSettings`.
        temperature: Likewise.
        kind: Likewise, ``outputs``.
    """
    if kind == "auto":
        kind = OUTPUTS.get(task, "values")
    if kind == "logits":
        rows = outputs.float()
        probabilities = bool((rows >= 0).all()) and torch.allclose(
            rows.sum(-1), torch.ones(()), atol=PROBABILITY_SUM_TOLERANCE
        )
        if temperature is None:
            temperature = TOKEN_TEMPERATURE if rows.dim() == 3 else CLASS_TEMPERATURE
        return SoftLabels(temperature, label_weight, probabilities)
    if kind == "embeddings":
        return Embeddings()
    return Values(float(outputs.float().var(unbiased=False)))
