"""Classification: the model gives one number a class, and the largest is its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.checks import finite, labels, one_row_each
from flyweight.tasks.scores import Scores

# How far from 1 a row of probabilities may sum: an 8-bit softmax rounds the small ones to 0.
PROBABILITY_SUM_TOLERANCE = 0.05


@final
@dataclass(frozen=True)
class Classification:
    """Right is when the true class is among the ``top_k`` largest outputs; of equal ones the first wins.

    Outputs are (examples, classes) logits, or probabilities: rows without negative entries that all sum to 1.
    A logit may be minus infinity (a masked class).

    Raises:
        TypeError: ``top_k`` is not a whole number.
        ValueError: ``top_k`` is below 1.
    """

    top_k: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int):
            raise TypeError(f"top_k must be a whole number, got {self.top_k!r}")
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")

    @property
    def name(self) -> str:
        """Its name in the catalog."""
        return "classification"

    @property
    def metric_name(self) -> str:
        """``"top-1 accuracy"``."""
        return f"top-{self.top_k} accuracy"

    @property
    def class_targets(self) -> bool:
        """The target column is read as classes."""
        return True

    def queries(self, splits: Splits) -> Examples:
        """The evaluation split. Raises InputError when it is empty or its targets are not classes."""
        labels(splits.evaluation, self.name)
        return splits.evaluation

    def score(self, outputs: np.ndarray, splits: Splits) -> Scores:
        """Right and wrong answers; predictions are the top-1 classes.

        The confidence is the probability of the ``top_k`` classes together.

        Raises:
            InputError: A label is out of range of the outputs, or these are not (examples, classes) numbers.
        """
        targets = labels(splits.evaluation, self.name)
        one_row_each(outputs, len(targets), self.name)
        chosen, probabilities = self._answers(outputs)
        _check_range(targets, outputs.shape[1], splits.evaluation.classes, "evaluation")
        for name, other in (("calibration", splits.calibration), ("train", splits.train)):
            if other.targets is not None and len(other):
                _check_range(labels(other, self.name), outputs.shape[1], other.classes, name)
        correct = (chosen == targets[:, None]).any(axis=1)
        confidence = np.minimum(probabilities.sum(axis=1), 1.0)
        return Scores(correct.astype(np.float64), chosen[:, 0], targets, correct, confidence)

    def metric(self, scores: Scores) -> float:
        """Fraction of right answers."""
        return float(scores.per_example.mean())

    def metric_is_mean(self, scores: Scores) -> bool:
        """See `flyweight.evaluate.statistics.MeanMetric`."""
        return True

    def guesses(self, scores: Scores) -> tuple[float, float]:
        """See `flyweight.evaluate.guessing.Guessable`; of the classes that occur, where there are enough."""
        counts = np.sort(np.unique(scores.targets, return_counts=True)[1])[::-1]
        random = self.top_k / len(counts) if self.top_k < len(counts) else 0.0
        return random, float(counts[: self.top_k].sum() / len(scores))

    def answers(self, outputs: np.ndarray, classes: Sequence[str]) -> Mapping[str, Sequence[object]]:
        """Columns label and probability, then label_2, probability_2 ... up to ``top_k``.

        A class without a name is its index.
        """
        chosen, probabilities = self._answers(outputs)
        columns: dict[str, Sequence[object]] = {}
        for place in range(self.top_k):
            suffix = f"_{place + 1}" if place else ""
            columns[f"label{suffix}"] = [
                classes[i] if i < len(classes) else i for i in chosen[:, place].tolist()
            ]
            columns[f"probability{suffix}"] = probabilities[:, place].tolist()
        return columns

    def _answers(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ``top_k`` classes, largest first, and their probabilities: both (examples, top_k)."""
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise InputError(
                f"{self.name} needs (examples, classes); the model's first output is {outputs.shape}"
            )
        if self.top_k > outputs.shape[1]:
            raise InputError(f"top_k is {self.top_k}, but the model has only {outputs.shape[1]} classes")
        finite(outputs.max(axis=1), self.name)
        if self.top_k == 1:
            chosen = outputs.argmax(axis=1)[:, None]
        else:
            chosen = np.argsort(-outputs.astype(np.float64), axis=1, kind="stable")[:, : self.top_k]
        return chosen, np.take_along_axis(_probabilities(outputs), chosen, axis=1)


def _probabilities(outputs: np.ndarray) -> np.ndarray:
    """(examples, classes) float64: softmax of logits; probabilities as they are."""
    values = outputs.astype(np.float64)
    if values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() <= PROBABILITY_SUM_TOLERANCE:
        return values
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _check_range(targets: np.ndarray, outputs: int, classes: tuple[str, ...], split: str) -> None:
    bad = np.flatnonzero((targets < 0) | (targets >= outputs))
    if len(bad):
        label = int(targets[bad[0]])
        named = f" ({classes[label]!r})" if 0 <= label < len(classes) else ""
        raise InputError(
            f"label {label}{named} of {split} example {bad[0]} is out of range: "
            f"the model has {outputs} outputs, so labels must be in 0..{outputs - 1}"
        )
