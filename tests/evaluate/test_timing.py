"""Timing with calls of known length, and the interval of a speedup by simulation."""

import gc
import time

import numpy as np
import pytest

from flyweight.evaluate.timing import WARM_UP_ROUNDS, interleave, latency, speedup


def test_each_round_makes_each_call_once_in_changing_order():
    made = []
    samples = interleave([lambda: made.append(0), lambda: made.append(1)], seconds=1e-9, minimum_rounds=40)
    rounds = np.array(made[2 * WARM_UP_ROUNDS :]).reshape(-1, 2)
    assert [len(s) for s in samples] == [40, 40]
    assert (rounds.sum(axis=1) == 1).all()
    assert 8 < (rounds[:, 0] == 0).sum() < 32


def test_samples_belong_to_their_call():
    fast, slow = interleave([lambda: None, lambda: time.sleep(0.002)], seconds=1e-9, minimum_rounds=5)
    assert np.median(fast) < 0.002 <= min(slow)


def test_rounds_stop_at_the_time_given_and_at_the_maximum():
    (timed,) = interleave([lambda: time.sleep(0.002)], seconds=0.05, minimum_rounds=1)
    assert 1 <= len(timed) <= 26
    (counted,) = interleave([lambda: None], seconds=60.0, minimum_rounds=1, maximum_rounds=7)
    assert len(counted) == 7


def test_garbage_collection_is_off_meanwhile_and_on_again_also_after_an_error():
    seen = []
    interleave([lambda: seen.append(gc.isenabled())], seconds=1e-9, minimum_rounds=1, maximum_rounds=1)
    assert seen[-1] is False
    assert gc.isenabled()

    def fail_later():
        seen.append(True)
        if len(seen) > 2 * WARM_UP_ROUNDS + 1:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interleave([fail_later], seconds=1e-9)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("calls", "seconds", "minimum"),
    [([], 1.0, 1), ([print], 0.0, 1), ([print], 1.0, 0), ([print], 1.0, 6000)],
)
def test_nothing_to_time_or_numbers_out_of_range_are_refused(calls, seconds, minimum):
    with pytest.raises(ValueError, match=r"nothing to time|seconds must be"):
        interleave(calls, seconds=seconds, minimum_rounds=minimum)


def test_latency_is_median_and_95th_percentile():
    found = latency([float(i) for i in range(101)], 4, threads=2)
    assert (found.p50_s, found.p95_s, found.batch_size, found.threads) == (50, 95, 4, 2)
    assert len(found.samples_s) == 101


def test_speedup_of_a_steady_pair_is_exact():
    estimate = speedup([2.0] * 30, [1.0] * 30)
    assert (estimate.value, estimate.low, estimate.high) == (2, 2, 2)


def test_speedup_takes_the_ratio_of_each_round():
    drift = np.linspace(1, 50, 100)  # a machine that gets slower hits both alike
    estimate = speedup(list(3 * drift), list(2 * drift))
    assert (estimate.low, estimate.high) == pytest.approx((1.5, 1.5))


def autocorrelated(generator, rounds):
    """A first-order autoregression with coefficient 0.7."""
    noise = generator.normal(size=rounds)
    for i in range(1, rounds):
        noise[i] += 0.7 * noise[i - 1]
    return noise


def test_speedup_interval_holds_the_truth_under_autocorrelated_noise():
    held = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        before = 1.3 * np.exp(0.1 * autocorrelated(generator, 400))
        estimate = speedup(list(before), [1.0] * 400)
        held += estimate.low <= 1.3 <= estimate.high
    assert held >= 33  # nominally 38; resampling single rounds holds it 27 times


def test_rounds_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="got 2 and 1"):
        speedup([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not above 0 s"):
        speedup([1.0], [0.0])
