"""Statistics against hand formulas, scipy, and what must always hold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import wilcoxon

from flyweight.evaluate.statistics import (
    MeanMetric,
    agreement,
    bootstrap,
    expected_calibration_error,
    paired_bootstrap,
    paired_test,
)
from flyweight.tasks.classification import Classification
from flyweight.tasks.regression import Regression
from flyweight.tasks.scores import Scores
from flyweight.tasks.similarity import Similarity, rank_agreement


class Third:
    """A third party's task: it offers no short way."""

    name = "third"
    metric_name = "accuracy"
    class_targets = True

    def queries(self, splits):
        return splits.evaluation

    def score(self, outputs, splits):
        return Classification().score(outputs, splits)

    def metric(self, scores):
        return Classification().metric(scores)

    def answers(self, outputs, classes):
        return {}


def answers(correct, confidence=None):
    right = np.asarray(correct, bool)
    predictions = np.where(right, 1, 0)
    return Scores(right.astype(float), predictions, np.ones(len(right), np.int64), right, confidence)


def values(predictions, targets):
    return Scores(rank_agreement(predictions, targets), predictions, targets)


def test_bootstrap_of_accuracy_matches_the_binomial_interval():
    correct = np.arange(1000) < 800
    estimate = bootstrap(Classification(), answers(correct), resamples=2000)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert estimate.value == pytest.approx(0.8)
    assert (estimate.low, estimate.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)


def test_bootstrap_is_the_same_with_the_same_seed():
    targets = np.arange(20.0)[:, None]
    scores = Scores(np.zeros(20), targets + np.sin(9 * targets), targets)
    assert bootstrap(Regression(), scores, seed=3) == bootstrap(Regression(), scores, seed=3)
    assert bootstrap(Regression(), scores, seed=3) != bootstrap(Regression(), scores, seed=4)


def test_the_short_way_of_means_gives_what_the_metric_gives():
    scores = answers(np.arange(40) % 4 > 0)
    assert not isinstance(Third(), MeanMetric)
    assert bootstrap(Third(), scores, resamples=50) == bootstrap(Classification(), scores, resamples=50)


def test_bootstrap_of_spearman_ranks_each_resample_anew():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=400)
    estimate = bootstrap(
        Similarity("pairs"), values(targets + generator.normal(size=400), targets), resamples=200
    )
    half = 1.96 * (1 - estimate.value**2) / math.sqrt(400)  # large-sample interval of a correlation
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.35)


def test_paired_interval_of_a_drop_is_narrower_than_the_metrics_own():
    before = np.arange(1000) < 800
    after = np.arange(1000) < 790
    drop = paired_bootstrap(Classification(), answers(before), answers(after))
    assert drop.value == pytest.approx(0.01)
    half = 1.96 * math.sqrt(0.01 * 0.99 / 1000)
    assert (drop.low, drop.high) == pytest.approx((0.01 - half, 0.01 + half), abs=0.002)


@settings(max_examples=20)
@given(arrays(bool, 12), arrays(bool, 12))
def test_paired_drop_changes_sign_with_the_sides(before, after):
    forth = paired_bootstrap(Classification(), answers(before), answers(after), resamples=40)
    back = paired_bootstrap(Classification(), answers(after), answers(before), resamples=40)
    assert forth.value == pytest.approx(-back.value)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))


@settings(max_examples=20)
@given(arrays(bool, st.integers(1, 12)))
def test_identical_answers_have_no_drop_p_1_and_agree(correct):
    scores = answers(correct)
    drop = paired_bootstrap(Classification(), scores, scores, resamples=20)
    assert (drop.value, drop.low, drop.high) == (0, 0, 0)
    assert paired_test(scores, scores).p_value == 1
    assert agreement(scores, scores) == 1


def test_identical_values_have_no_drop_and_p_1():
    targets = np.arange(10.0)
    scores = Scores(-np.ones(10), (targets + 1)[:, None], targets[:, None])
    drop = paired_bootstrap(Regression(), scores, scores, resamples=20)
    test = paired_test(scores, scores)
    assert (drop.value, drop.low, drop.high, test.p_value, test.lost, test.gained) == (0, 0, 0, 1, 0, 0)


def test_mcnemar_is_the_exact_binomial_sum():
    before = np.array([True] * 9 + [False] * 3 + [True] * 20)
    after = np.array([False] * 9 + [True] * 3 + [True] * 20)
    test = paired_test(answers(before), answers(after))
    assert (test.name, test.lost, test.gained) == ("McNemar (exact)", 9, 3)
    assert test.p_value == pytest.approx(2 * sum(math.comb(12, k) for k in range(4)) / 2**12)


def test_values_are_tested_by_wilcoxon():
    generator = np.random.default_rng(0)
    before = generator.normal(size=60)
    after = before - 0.2 + generator.normal(size=60)
    test = paired_test(Scores(before, before, before), Scores(after, after, after))
    assert test.name == "Wilcoxon signed-rank"
    assert test.p_value == pytest.approx(wilcoxon(after, before).pvalue)
    assert test.lost + test.gained == 60


@pytest.mark.parametrize("count", [8, 50])
def test_few_values_are_tested_exactly(count):
    change = np.random.default_rng(count).normal(0.3, size=count)
    test = paired_test(Scores(0 * change, change, change), Scores(change, change, change))
    assert test.p_value == pytest.approx(wilcoxon(change, method="exact").pvalue)


def test_few_values_with_ties_are_tested_exactly():
    change = np.array([1.0, 1.0, 2.0, -1.0, 3.0])  # ranks 2 2 4 2 5; up 13 of 15
    test = paired_test(Scores(0 * change, change, change), Scores(change, change, change))
    assert test.p_value == 2 * 4 / 2**5  # nothing down, or one of the three of rank 2


@settings(max_examples=50)
@given(st.data(), st.integers(1, 60))
def test_p_is_a_probability_also_with_ties_and_few_examples(data, count):
    few = st.sampled_from([0.0, 0.5, 1.0])
    before, after = (data.draw(arrays(np.float64, count, elements=few)) for _ in range(2))
    test = paired_test(Scores(before, before, before), Scores(after, after, after))
    assert 0 <= test.p_value <= 1


def test_agreement_counts_equal_classes():
    assert agreement(answers([1, 1, 0, 0]), answers([1, 0, 0, 0])) == 0.75


def test_values_have_no_agreement():
    scores = values(np.arange(3.0), np.arange(3.0))
    assert agreement(scores, scores) is None


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.65, 0.65])
    scores = answers([1, 0, 1, 1], confidence)
    assert expected_calibration_error(scores, bins=10) == pytest.approx(
        0.5 * abs(0.5 - 0.95) + 0.5 * abs(1 - 0.65)
    )


def test_calibration_bins_hold_their_upper_edge():
    scores = answers([1, 0], np.array([0.5, 0.0]))
    assert expected_calibration_error(scores, bins=2) == pytest.approx(0.25)


def test_scores_without_confidence_have_no_calibration_error():
    assert expected_calibration_error(answers([1, 0])) is None


@settings(max_examples=30)
@given(arrays(bool, 9), arrays(np.float64, 9, elements=st.floats(0, 1)), st.integers(1, 20))
def test_calibration_error_is_within_0_and_1(correct, confidence, bins):
    error = expected_calibration_error(answers(correct, confidence), bins=bins)
    assert error is not None
    assert 0 <= error <= 1


def test_sides_of_different_length_are_refused():
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_test(answers([1, 0]), answers([1, 0, 0]))


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no scored examples"):
        bootstrap(Classification(), answers([]))
