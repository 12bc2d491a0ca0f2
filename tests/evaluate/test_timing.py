"""Timing with calls of known length, and the interval of a speedup by simulation."""

import gc
import math
import time

import numpy as np
import pytest

from flyweight.evaluate.timing import WARM_UP_ROUNDS, interleave, latency, speedup


def load(call):
    return lambda: call


def test_each_round_makes_each_call_once_in_changing_order():
    made = []
    samples = interleave(
        [load(lambda: made.append(0)), load(lambda: made.append(1))],
        seconds=1e-9,
        sessions=1,
        minimum_rounds=40,
    )
    rounds = np.array(made[2 * WARM_UP_ROUNDS :]).reshape(-1, 2)
    assert [len(s) for (s,) in samples] == [40, 40]
    assert (rounds.sum(axis=1) == 1).all()
    assert 8 < (rounds[:, 0] == 0).sum() < 32


def test_every_session_loads_all_anew_and_in_the_other_direction():
    loaded = []

    def loads(name):
        def fresh():
            loaded.append(name)
            return lambda: None

        return fresh

    samples = interleave([loads("a"), loads("b")], seconds=1e-9, sessions=3, minimum_rounds=2)
    assert loaded == ["a", "b", "b", "a", "a", "b"]
    assert [[len(session) for session in call] for call in samples] == [[2, 2, 2], [2, 2, 2]]


def test_samples_belong_to_their_call_in_every_session():
    fast, slow = interleave(
        [load(lambda: None), load(lambda: time.sleep(0.002))], seconds=1e-9, sessions=2, minimum_rounds=5
    )
    assert np.median(fast) < 0.002 <= min(map(min, slow))


def test_rounds_stop_at_the_time_given_and_at_the_maximum():
    (timed,) = interleave([load(lambda: time.sleep(0.002))], seconds=0.05, sessions=2, minimum_rounds=1)
    assert 2 <= sum(map(len, timed)) <= 27
    (counted,) = interleave([load(lambda: None)], seconds=60.0, sessions=2, maximum_rounds=9)
    assert [len(session) for session in counted] == [9, 9]


def test_garbage_collection_is_off_meanwhile_and_on_again_also_after_an_error():
    seen = []
    record = load(lambda: seen.append(gc.isenabled()))
    interleave([record], seconds=1e-9, sessions=1, minimum_rounds=1, maximum_rounds=1)
    assert seen[-1] is False
    assert gc.isenabled()

    def fail_later():
        seen.append(True)
        if len(seen) > 2 * WARM_UP_ROUNDS + 1:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interleave([load(fail_later)], seconds=1e-9)
    assert gc.isenabled()


@pytest.mark.parametrize(
    "given",
    [
        {"loads": [], "seconds": 1.0},
        {"loads": [load(print)], "seconds": 0.0},
        {"loads": [load(print)], "seconds": 1.0, "sessions": 0},
        {"loads": [load(print)], "seconds": 1.0, "minimum_rounds": 0},
        {"loads": [load(print)], "seconds": 1.0, "minimum_rounds": 10, "maximum_rounds": 9},
    ],
)
def test_nothing_to_time_or_numbers_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match=r"nothing to time|seconds must be"):
        interleave(given.pop("loads"), **given)


def test_latency_is_median_and_95th_percentile_over_all_sessions():
    found = latency(
        [[float(i) for i in range(0, 101, 2)], [float(i) for i in range(1, 101, 2)]],
        {"x": np.zeros((4, 7))},
        threads=2,
    )
    assert (found.p50_s, found.p95_s, found.input_shapes, found.threads) == (50, 95, {"x": (4, 7)}, 2)
    assert len(found.samples_s) == 101


def test_speedup_of_a_steady_pair_is_exact():
    estimate = speedup([[2.0] * 30] * 3, [[1.0] * 30] * 3)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((2, 2, 2))


def test_speedup_takes_the_ratio_of_each_round():
    drift = np.linspace(1, 50, 100)  # a machine that gets slower hits both alike
    estimate = speedup([list(3 * drift)] * 2, [list(2 * drift)] * 2)
    assert (estimate.low, estimate.high) == pytest.approx((1.5, 1.5))


def test_speedup_interval_is_students_of_the_logarithms():
    ratios = [1.0, 1.1, 1.3]
    estimate = speedup([[r] * 5 for r in ratios], [[1.0] * 5] * 3)
    logs = np.log(ratios)
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # t of 2 degrees of freedom at 0.975
    expected = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx(tuple(expected), rel=1e-6)


def test_speedup_interval_holds_the_truth_when_each_session_has_its_own_pace():
    held = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        pace = np.exp(0.02 * generator.normal(size=5))
        before = [list(1.3 * p * np.exp(0.1 * generator.normal(size=100))) for p in pace]
        estimate = speedup(before, [[1.0] * 100] * 5)
        held += estimate.low <= 1.3 <= estimate.high
    assert held >= 180  # nominally 190; an interval from the rounds alone holds it 90 times


def test_sessions_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"got \[2, 1\] and \[1, 1\]"):
        speedup([[1.0, 2.0], [1.0]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="at least 2 sessions"):
        speedup([[1.0]], [[1.0]])
    with pytest.raises(ValueError, match="not above 0 s"):
        speedup([[1.0], [1.0]], [[0.0], [1.0]])
