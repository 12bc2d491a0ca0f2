"""How sure the measured quality is: bootstrap intervals, paired tests, agreement, calibration.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentile interval);
McNemar 1947, doi:10.1007/BF02295996; Guo et al. 2017, arXiv:1706.04599, section 2 (calibration error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from flyweight.core.protocols import Task
from flyweight.core.report import Estimate, PairedTest
from flyweight.tasks.scores import Scores

CONFIDENCE = 0.95
EXACT_WILCOXON = 50  # examples; the normal approximation is close from about 20


@runtime_checkable
class MeanMetric(Protocol):
    """A task that may offer the bootstrap a short way: the mean of ``per_example`` is its metric."""

    def metric_is_mean(self, scores: Scores) -> bool:
        """Whether that holds for these scores and every resample of them."""


def bootstrap(task: Task, scores: Scores, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The metric with its 95 % percentile interval over resampled examples.

    Raises:
        ValueError: There are no examples, or fewer than 1 resample.
    """
    metric = _resampled_metric(task, scores)
    values = [metric(indices) for indices in _resamples(len(scores), resamples, seed)]
    return percentile_interval(task.metric(scores), np.array(values))


def paired_bootstrap(
    task: Task, before: Scores, after: Scores, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The drop (before less after; positive is worse) with its 95 % percentile interval.

    Both are resampled at the same examples, so what is hard for both does not widen the interval.

    Raises:
        ValueError: The two are not of the same number of examples, above 0; or fewer than 1 resample.
    """
    _check_pair(before, after)
    metric_before, metric_after = _resampled_metric(task, before), _resampled_metric(task, after)
    indices = _resamples(len(before), resamples, seed)
    drops = np.array([metric_before(chosen) - metric_after(chosen) for chosen in indices])
    return percentile_interval(task.metric(before) - task.metric(after), drops)


def paired_test(before: Scores, after: Scores) -> PairedTest:
    """Two-sided test that neither is better: exact McNemar where answers are right or wrong, else Wilcoxon.

    Wilcoxon leaves out the examples with equal scores. Where no example differs, p is 1.

    Raises:
        ValueError: The two are not of the same number of examples, above 0.
    """
    _check_pair(before, after)
    if before.correct is not None and after.correct is not None:
        lost = int((before.correct & ~after.correct).sum())
        gained = int((~before.correct & after.correct).sum())
        return PairedTest(name="McNemar (exact)", p_value=_mcnemar(lost, gained), lost=lost, gained=gained)
    change = after.per_example - before.per_example
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    return PairedTest(name="Wilcoxon signed-rank", p_value=_wilcoxon(change), lost=lost, gained=gained)


def agreement(before: Scores, after: Scores) -> float | None:
    """Fraction of examples with the same prediction; None where predictions are not classes.

    Raises:
        ValueError: The two are not of the same number of examples, above 0.
    """
    _check_pair(before, after)
    if before.predictions.dtype.kind not in "biuU" or before.predictions.shape != after.predictions.shape:
        return None
    same = before.predictions == after.predictions
    return float(same.reshape(len(same), -1).all(axis=1).mean())


def expected_calibration_error(scores: Scores, bins: int = 15) -> float | None:
    """Mean over examples of |accuracy - confidence| of their bin, in 0..1; None without confidences.

    Bins are of equal width: (0, 1/bins], ..., (1 - 1/bins, 1].

    Raises:
        ValueError: ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if scores.confidence is None or scores.correct is None or len(scores) == 0:
        return None
    bin_of = np.clip(np.ceil(scores.confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, scores.correct.astype(np.float64) - scores.confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(scores))


def percentile_interval(value: float, resampled: np.ndarray) -> Estimate:
    """``value`` with the interval that holds the middle 95 % of ``resampled``, (resamples,)."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value=float(value), low=float(low), high=float(high), confidence=CONFIDENCE)


def _resamples(examples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    if examples < 1:
        raise ValueError("there are no scored examples to resample")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    generator = np.random.default_rng(seed)
    return (generator.integers(examples, size=examples) for _ in range(resamples))


def _resampled_metric(task: Task, scores: Scores) -> Callable[[np.ndarray], float]:
    if isinstance(task, MeanMetric) and task.metric_is_mean(scores):
        return lambda indices: float(scores.per_example[indices].mean())
    return lambda indices: task.metric(scores.take(indices))


def _check_pair(before: Scores, after: Scores) -> None:
    if len(before) != len(after) or len(before) == 0:
        raise ValueError(
            f"scores must be of the same examples, at least 1; got {len(before)} and {len(after)}"
        )


def _mcnemar(lost: int, gained: int) -> float:
    from scipy.stats import binomtest  # 0.8 s to import

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def _wilcoxon(change: np.ndarray) -> float:
    """Two-sided p of the signed ranks of ``change``, (examples,); exact for few, ties and all."""
    from scipy.stats import rankdata, wilcoxon

    moved = change[change != 0]
    if len(moved) == 0:
        return 1.0
    if len(moved) > EXACT_WILCOXON:
        return float(wilcoxon(moved, method="approx").pvalue)
    doubled = (2 * rankdata(np.abs(moved))).astype(np.int64)  # averaged ranks are multiples of a half
    probability = np.ones(1)  # of each sum of the ranks that went up, each up or down alike
    for rank in doubled:
        probability = (np.pad(probability, (0, rank)) + np.pad(probability, (rank, 0))) / 2
    up = int(doubled[moved > 0].sum())
    return min(1.0, 2 * float(min(probability[: up + 1].sum(), probability[up:].sum())))
