"""A metric of the user's own: a Python function of the outputs and the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.checks import one_row_each
from flyweight.tasks.scores import Scores
from flyweight.user_code import reason, user_object


@final
@dataclass(frozen=True)
class Custom:
    """The metric is the mean of what a function gives.

    The function is called as ``metric(outputs, targets)`` with the model's first output, (examples, ...), and
    the targets as the data hold them, and returns one finite score an example, higher is better. Its file is
    run: name only your own.

    Attributes:
        spec: ``file.py:metric``, relative to the current folder.

    Raises:
        InputError: The file is missing or raises, or holds no such function.
    """

    spec: str
    function: Callable[[np.ndarray, np.ndarray], Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", _load(self.spec))

    @property
    def name(self) -> str:
        """``file.py:metric``."""
        return self.spec

    @property
    def metric_name(self) -> str:
        """The function's name."""
        return self.spec.rpartition(":")[2]

    @property
    def class_targets(self) -> bool | None:
        """Whether the target column is read as classes: the data decide."""
        return None

    def queries(self, splits: Splits) -> Examples:
        """The evaluation split. Raises InputError when it is empty or unlabelled."""
        _labelled(splits.evaluation, self.spec)
        return splits.evaluation

    def score(self, outputs: np.ndarray, splits: Splits) -> Scores:
        """What the function gives; predictions are the outputs.

        Raises:
            InputError: The function raises, or returns something else than one finite number an example.
        """
        targets = _labelled(splits.evaluation, self.spec)
        one_row_each(outputs, len(targets), self.spec)
        try:
            returned = np.asarray(self.function(outputs, targets))
        except Exception as error:  # the user's code may raise anything
            raise InputError(f"metric {self.spec} failed: {reason(error)}") from error
        if returned.shape != (len(targets),) or returned.dtype.kind not in "biuf":
            raise InputError(
                f"metric {self.spec} must return one number an example, ({len(targets)},); "
                f"it returned {returned.dtype} of shape {returned.shape}"
            )
        if not np.isfinite(returned).all():
            first = np.flatnonzero(~np.isfinite(returned))[0]
            raise InputError(f"metric {self.spec} returned NaN or infinity for example {first}")
        return Scores(returned.astype(np.float64), outputs, targets)

    def metric(self, scores: Scores) -> float:
        """Mean of the scores."""
        return float(scores.per_example.mean())

    def metric_is_mean(self, scores: Scores) -> bool:
        """See `flyweight.evaluate.statistics.MeanMetric`."""
        return True

    def answers(self, outputs: np.ndarray, classes: Sequence[str]) -> Mapping[str, Sequence[object]]:
        """The outputs as they are: column output, or output_0, output_1, ... of several."""
        columns = outputs.reshape(len(outputs), -1).T
        if len(columns) == 1:
            return {"output": columns[0].tolist()}
        return {f"output_{i}": column.tolist() for i, column in enumerate(columns)}


def _labelled(examples: Examples, spec: str) -> np.ndarray:
    if len(examples) == 0:
        raise InputError(f"metric {spec} has no examples to score: the split is empty")
    if examples.targets is None:
        raise InputError(f"metric {spec} needs targets, and the data hold none: name the target column")
    return examples.targets


def _load(spec: str) -> Callable[[np.ndarray, np.ndarray], Any]:
    with user_object(spec) as function:
        if not callable(function):
            raise InputError(f"{spec} is no function; a metric is called with outputs and targets")
    return function  # type: ignore[no-any-return]  # what it returns is checked on each call
