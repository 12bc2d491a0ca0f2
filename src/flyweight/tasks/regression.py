"""Regression: the model's outputs are the values asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.checks import finite, numbers, one_row_each
from flyweight.tasks.scores import Scores


@final
@dataclass(frozen=True)
class Regression:
    """One value an example, or several; the metric is the coefficient of determination.

    R² = 1 - sum of squared errors / sum of squared deviations of the targets from their mean. With several
    values both sums run over all of them, each with its own mean: those with the larger spread weigh more.
    """

    @property
    def name(self) -> str:
        """Its name in the catalog."""
        return "regression"

    @property
    def metric_name(self) -> str:
        """``"R²"``."""
        return "R²"

    @property
    def class_targets(self) -> bool:
        """The target column is read as numbers."""
        return False

    def queries(self, splits: Splits) -> Examples:
        """The evaluation split. Raises InputError when it is empty or its targets are not finite numbers."""
        numbers(splits.evaluation, self.name)
        return splits.evaluation

    def score(self, outputs: np.ndarray, splits: Splits) -> Scores:
        """Minus the squared error of each example, the mean over its values.

        Raises:
            InputError: The outputs are not finite, or not one for each target value.
        """
        targets = _rows(numbers(splits.evaluation, self.name))
        one_row_each(outputs, len(targets), self.name)
        predictions = _rows(outputs)
        if predictions.shape != targets.shape:
            raise InputError(
                f"regression needs {targets.shape[1]} values an example, as the targets have; "
                f"the model gives {predictions.shape[1]}"
            )
        finite(predictions, self.name)
        return Scores(-((predictions - targets) ** 2).mean(axis=1), predictions, targets)

    def metric(self, scores: Scores) -> float:
        """R², at most 1; where all targets are equal it is 1 for no error and 0 for any."""
        errors = float(((scores.predictions - scores.targets) ** 2).sum())
        spread = float(((scores.targets - scores.targets.mean(axis=0)) ** 2).sum())
        if spread > 0:
            return 1.0 - errors / spread
        return 0.0 if errors > 0 else 1.0

    def guesses(self, scores: Scores) -> tuple[float, float]:
        """See `flyweight.evaluate.guessing.Guessable`; the mean of the targets has R² 0."""
        return 0.0, 0.0

    def answers(self, outputs: np.ndarray, classes: Sequence[str]) -> Mapping[str, Sequence[object]]:
        """Column value, or value_0, value_1, ... of several."""
        columns = _rows(outputs).T
        if len(columns) == 1:
            return {"value": columns[0].tolist()}
        return {f"value_{i}": column.tolist() for i, column in enumerate(columns)}


def _rows(values: np.ndarray) -> np.ndarray:
    """(examples, values) float64."""
    return values.reshape(len(values), -1).astype(np.float64)
