"""How a compressed model is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from flyweight.core.plan import Scalar

# How images may be changed before they are learned from, and the value that leaves them as they are.
AUGMENTATIONS: Mapping[str, Scalar] = {"crop": 0, "flip": False}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "tune": ("all", "scales"),
    "optimizer": ("auto", "sgd", "adamw"),
    "batch_norms": ("kept", "folded"),
    "precision": ("auto", "float32", "bfloat16"),
    "outputs": ("auto", "logits", "embeddings", "values"),
}


@final
@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What `flyweight compress` trains, and how long; the defaults train nothing.

    Attributes:
        epochs: Passes over the training data; 0 is no training.
        train_seconds: Time given to each training; its learning rate runs out in it. None is no limit.
        tune: ``all`` trains weights and what they are rounded with. ``scales`` keeps the codes, and trains
            scales, zero points, lookup tables, norms and biases alone.
        learning_rate: The highest; None is the optimizer's own for what is tuned, see
            `flyweight.recover.optimizer`.
        optimizer: ``auto`` is sgd (Nesterov momentum) for networks with convolutions, adamw for others.
        train_batch_size: Examples in one step.
        warm_up: Part of the training in which the learning rate rises.
        weight_decay: Of weights; nothing else decays.
        clip_norm: Longest gradient; longer ones are shortened.
        outputs: What the model puts out, and with it the loss; ``auto`` goes by the task, and takes what a
            task of your own measures for values.
        temperature: Of the softened probabilities that are learned from; None is 4 for those of classes and 1
            for those of tokens, see `flyweight.recover.losses`.
        label_weight: Part of the loss that the labels have; the original has the rest.
        augment: ``crop``: images are shifted by up to so many pixels. ``flip``: every second one is mirrored.
        batch_norms: Of networks that have them: ``kept`` while the network trains and folded then, or
            ``folded`` before.
        held_out: Part of the training data that is not trained on, to choose the best state by.
        patience: Epochs without a better state after which training ends; None is all of them.
        precision: ``auto`` computes in bfloat16 where the processor multiplies it; sums stay float32.
        resume: Go on with training that was interrupted.
    """

    epochs: int = 0
    train_seconds: float | None = None
    tune: str = "all"
    learning_rate: float | None = None
    optimizer: str = "auto"
    train_batch_size: int = 128
    warm_up: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    outputs: str = "auto"
    temperature: float | None = None
    label_weight: float = 0.0
    augment: Mapping[str, Scalar] = field(default_factory=dict)
    batch_norms: str = "kept"
    held_out: float = 0.05
    patience: int | None = None
    precision: str = "auto"
    resume: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("train_batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("train_seconds", "learning_rate", "clip_norm", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}")
        if self.epochs < 0:
            raise ValueError(f"epochs must be at least 0, got {self.epochs}")
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay must be at least 0 and below 1, got {self.weight_decay}")
        if not 0 <= self.label_weight <= 1:
            raise ValueError(f"label_weight must be in 0..1, got {self.label_weight}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up must be at least 0 and below 1, got {self.warm_up}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")
        _check_augmentations(self.augment)


def _check_augmentations(augment: Mapping[str, Scalar]) -> None:
    for name, value in augment.items():
        if name not in AUGMENTATIONS:
            raise ValueError(f"augment knows {', '.join(AUGMENTATIONS)}, got {name!r}")
        if type(value) is not type(AUGMENTATIONS[name]):
            kind = "true or false" if name == "flip" else "a whole number of pixels"
            raise ValueError(f"augment: {name} must be {kind}, got {value!r}")
        if value < 0:  # type: ignore[operator]  # neither of the two is text
            raise ValueError(f"augment: {name} must be at least 0, got {value}")
