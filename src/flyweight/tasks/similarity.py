"""Similarity: the model embeds each example, and near embeddings mean like examples.

Source: Reimers and Gurevych 2019, arXiv:1908.10084, section 4 (Spearman of cosine on the pairs of STS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.tasks.checks import finite, labels, numbers, one_row_each
from flyweight.tasks.scores import Scores

Column: TypeAlias = np.ndarray | Sequence[object]  # of raw examples

METRIC_NAMES = {
    "pairs": "Spearman of cosine",
    "neighbours": "1-nearest-neighbour accuracy",
    "auto": "Spearman of cosine, or 1-nearest-neighbour accuracy",
}

NEIGHBOUR_ROWS = 1024  # compared with the whole train split at once: 40 MB against 10 000 examples


@final
@dataclass(frozen=True)
class Similarity:
    """Two measures; "auto" takes the one that fits the data, and `settled` says which.

    - "pairs": two input columns and a number that says how alike they are. The metric is Spearman's rho
      between the cosines of the embeddings and those numbers, ties given their average rank.
    - "neighbours": one input column and classes. The answer is the class of the nearest train example by the
      cosine of the embeddings.

    Raises:
        ValueError: ``measure`` is another.
    """

    measure: str = "auto"

    def __post_init__(self) -> None:
        if self.measure not in METRIC_NAMES:
            raise ValueError(f"measure must be one of {', '.join(METRIC_NAMES)}, got {self.measure!r}")

    @property
    def name(self) -> str:
        """Its name in the catalog."""
        return "similarity"

    @property
    def metric_name(self) -> str:
        """One name once `settled`, both before."""
        return METRIC_NAMES[self.measure]

    @property
    def class_targets(self) -> bool | None:
        """Whether the target column is read as classes; None lets the data decide."""
        return {"auto": None, "pairs": False, "neighbours": True}[self.measure]

    def settled(self, splits: Splits) -> Similarity:
        """The same task with ``measure`` as the data have it.

        Raises:
            InputError: The data fit neither measure, or not the one asked for.
        """
        columns = len(splits.evaluation.inputs)
        if columns == 2 and self.measure != "neighbours":
            numbers(splits.evaluation, self.name)
            return Similarity("pairs")
        if columns == 1 and self.measure != "pairs":
            labels(splits.evaluation, self.name)
            return Similarity("neighbours")
        raise InputError(
            "similarity needs two input columns and a number that says how alike they are, or one input "
            f"column and classes; {self.measure!r} does not fit columns {', '.join(splits.evaluation.inputs)}"
        )

    def queries(self, splits: Splits) -> Examples:
        """All first of the pairs then all second; or the evaluation split then the train split.

        The one input column has the first column's name. Raises InputError as `settled` does, and when there
        is no train example to be near to.
        """
        evaluation, train = splits.evaluation, splits.train
        if self.settled(splits).measure == "pairs":
            return self.pair_queries(evaluation)
        if len(train) == 0:
            raise InputError(
                "similarity needs train examples to find the nearest among, and the split is empty"
            )
        labels(train, self.name)
        name, values = next(iter(evaluation.inputs.items()))
        if name not in train.inputs:
            raise InputError(f"the train split has no input column {name!r}, as the evaluation split has")
        return Examples({name: _joined(values, train.inputs[name])})

    @staticmethod
    def pair_queries(examples: Examples) -> Examples:
        """All first of two input columns then all second, in one column of the first's name."""
        (name, first), (_, second) = examples.inputs.items()
        return Examples({name: _joined(first, second)})

    @staticmethod
    def pair_answers(outputs: np.ndarray) -> Mapping[str, Sequence[object]]:
        """Column similarity: the cosine of each pair, from the embeddings of `pair_queries`."""
        return {"similarity": _pair_cosines(_embeddings(outputs)).tolist()}

    def score(self, outputs: np.ndarray, splits: Splits) -> Scores:
        """Scores from the embeddings of the queries, (queries, width).

        Pairs: predictions are cosines; the score of an example is 1 less half the squared difference of its
        two standardised ranks: 1 where both agree, and the mean over the examples is exactly Spearman's rho.
        Neighbours: 1 for the right class, 0 for another.

        Raises:
            InputError: The outputs are not one finite embedding a query.
        """
        evaluation, measure = splits.evaluation, self.settled(splits).measure
        reference = len(evaluation) if measure == "pairs" else len(splits.train)
        one_row_each(outputs, len(evaluation) + reference, self.name)
        embeddings = _embeddings(outputs)
        if measure == "pairs":
            cosines = _pair_cosines(embeddings)
            targets = numbers(evaluation, self.name)
            return Scores(rank_agreement(cosines, targets), cosines, targets)
        unit = _unit_rows(embeddings)
        first, second = unit[: len(evaluation)], unit[len(evaluation) :]
        targets = labels(evaluation, self.name)
        predictions = labels(splits.train, self.name)[_nearest(first, second)]
        correct = predictions == targets
        return Scores(correct.astype(np.float64), predictions, targets, correct)

    def metric(self, scores: Scores) -> float:
        """Spearman's rho in -1..1 (0 where one side is constant), or the fraction of right answers."""
        if scores.correct is not None:
            return float(scores.per_example.mean())
        return float(rank_agreement(scores.predictions, scores.targets).mean())

    def metric_is_mean(self, scores: Scores) -> bool:
        """See `flyweight.evaluate.statistics.MeanMetric`; ranks depend on the sample, so rho is not one."""
        return scores.correct is not None

    def guesses(self, scores: Scores) -> tuple[float, float]:
        """See `flyweight.evaluate.guessing.Guessable`; of the classes that occur, or no correlation."""
        if scores.correct is None:
            return 0.0, 0.0
        counts = np.unique(scores.targets, return_counts=True)[1]
        return 1 / len(counts) if len(counts) > 1 else 0.0, float(counts.max() / len(scores))

    def answers(self, outputs: np.ndarray, classes: Sequence[str]) -> Mapping[str, Sequence[object]]:
        """The embedding: columns e0, e1, ..."""
        return {f"e{i}": column.tolist() for i, column in enumerate(_embeddings(outputs).T)}


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of the rows of ``a`` and ``b``, both (rows, width); a zero row has cosine 0 with any.

    Raises:
        ValueError: The shapes differ, or are not those of rows.
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) == 0:
        raise ValueError(
            f"mean_cosine needs two arrays of the same (rows, width), got {a.shape} and {b.shape}"
        )
    rows_a, rows_b = _unit_rows(a.astype(np.float64)), _unit_rows(b.astype(np.float64))
    return float(np.einsum("ij,ij->i", rows_a, rows_b).mean())


def rank_agreement(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """1 - (z(prediction) - z(target))² / 2 of standardised ranks z, (examples,); 0 if one side is constant.

    As the mean of z² is 1, the mean of this is the mean of the product of both z: Spearman's rho.
    """
    predicted, true = _standardised_ranks(predictions), _standardised_ranks(targets)
    if not (predicted.any() and true.any()):
        return np.zeros(len(predictions))
    return np.asarray(1 - (predicted - true) ** 2 / 2)


def _standardised_ranks(values: np.ndarray) -> np.ndarray:
    """(examples,) ranks, ties averaged, with mean 0 and variance 1; zeros for constant values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return np.asarray((ranks - ranks.mean()) / ranks.std()) if len(counts) > 1 else np.zeros(len(values))


def _embeddings(outputs: np.ndarray) -> np.ndarray:
    if outputs.ndim != 2 or outputs.size == 0 or outputs.dtype.kind != "f":
        raise InputError(
            "similarity needs one embedding a query, float (queries, width); the model's first output is "
            f"{outputs.dtype} of shape {outputs.shape}: pool the tokens inside the model"
        )
    finite(outputs, "similarity")
    return outputs


def _pair_cosines(embeddings: np.ndarray) -> np.ndarray:
    """(pairs,) cosines of the first half of the rows with the second."""
    first, second = np.split(_unit_rows(embeddings), 2)
    return np.asarray(np.einsum("ij,ij->i", first, second))


def _unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, in at least float32; zero rows stay zero."""
    wide = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
    tiny = np.finfo(wide.dtype).tiny
    scaled = wide / np.maximum(np.abs(wide).max(axis=1, keepdims=True), tiny)  # no square overflows
    return np.asarray(scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), tiny))


def _nearest(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Index of the unit row of ``references`` with the largest cosine, (queries,)."""
    chunks = range(0, len(queries), NEIGHBOUR_ROWS)
    return np.concatenate([(queries[i : i + NEIGHBOUR_ROWS] @ references.T).argmax(axis=1) for i in chunks])


def _joined(first: Column, second: Column) -> Column:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.shape[1:] != second.shape[1:]:
            raise InputError(f"the input columns differ in shape: {first.shape[1:]} and {second.shape[1:]}")
        return np.concatenate([first, second])
    return [*first, *second]
