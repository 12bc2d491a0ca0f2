"""Scored examples: what a task makes of a model's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """One entry an evaluation example on axis 0.

    Attributes:
        per_example: (examples,) float64, higher is better; what paired tests compare.
        predictions: (examples, ...) what the metric is computed from: class index, cosine, value.
        targets: (examples, ...) the truth.
        correct: (examples,) bool where an answer is right or wrong, else None.
        confidence: (examples,) float64 probability of the answer, where the task gives one, else None.
    """

    per_example: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    correct: np.ndarray | None = None
    confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {
            len(a)
            for a in (self.per_example, self.predictions, self.targets, self.correct, self.confidence)
            if a is not None
        }
        if len(lengths) != 1:
            raise ValueError(f"scores differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.per_example)

    def take(self, indices: np.ndarray) -> Scores:
        """The examples at ``indices``, (n,) int, repeats allowed."""
        return Scores(
            self.per_example[indices],
            self.predictions[indices],
            self.targets[indices],
            None if self.correct is None else self.correct[indices],
            None if self.confidence is None else self.confidence[indices],
        )
