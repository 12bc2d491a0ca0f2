"""Wall-clock time of calls that are compared: taken in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np

from flyweight.core.report import Estimate, Latency
from flyweight.evaluate.statistics import CONFIDENCE

Call: TypeAlias = Callable[[], object]

WARM_UP_ROUNDS = 5  # first calls allocate arenas and start threads
# Where a session's buffers come to lie changes its speed by 1 to 2 % for as long as it lives, so a file
# loaded once is compared with one layout of its rival. Five loads leave an interval of about that width.
SESSIONS = 5


def interleave(
    loads: Sequence[Callable[[], Call]],
    *,
    seconds: float,
    sessions: int = SESSIONS,
    minimum_rounds: int = 8,
    maximum_rounds: int = 1000,
) -> list[list[list[float]]]:
    """Seconds of each call: one list a call, in it one list a session, in it one entry a round.

    For every session all calls are loaded anew. A round makes each call once, in an order drawn anew from a
    fixed seed, so that none always runs in the other's wake (warm caches, spinning threads). Garbage
    collection is off meanwhile.

    Args:
        loads: Each gives the call to time, ready to be made.
        seconds: Time to spend on rounds, in equal parts on the sessions, which end at the first round that
            ends later.
        sessions: How often everything is loaded.
        minimum_rounds: Done in each session even when they take longer.
        maximum_rounds: Enough of each session: what is uncertain then differs between sessions.

    Raises:
        ValueError: There is nothing to call, or a number is out of range.
    """
    if not loads:
        raise ValueError("there is nothing to time")
    if seconds <= 0 or sessions < 1 or not 1 <= minimum_rounds <= maximum_rounds:
        raise ValueError(
            "seconds must be above 0, sessions at least 1 and 1 <= minimum_rounds <= maximum_rounds, "
            f"got {seconds}, {sessions}, {minimum_rounds} and {maximum_rounds}"
        )
    rounds, shuffle = range(minimum_rounds, maximum_rounds + 1), random.Random(0).shuffle
    taken: list[list[list[float]]] = [[] for _ in loads]
    for session in range(sessions):
        # Every other time from the last to the first: what is loaded later lies elsewhere in memory.
        turned = -1 if session % 2 else 1
        samples = _session(loads[::turned], seconds / sessions, rounds, shuffle)[::turned]
        for before, found in zip(taken, samples, strict=True):
            before.append(found)
    return taken


def latency(samples: Sequence[Sequence[float]], inputs: Mapping[str, np.ndarray], *, threads: int) -> Latency:
    """Median and 95th percentile over all sessions of the ``samples`` of one call on ``inputs``, in seconds.

    Raises:
        ValueError: There are no samples.
    """
    joined = [value for session in samples for value in session]
    if not joined:
        raise ValueError("there are no timed rounds")
    median, high = np.quantile(np.asarray(joined), [0.5, 0.95])
    return Latency(
        p50_s=float(median),
        p95_s=float(high),
        samples_s=tuple(joined),
        input_shapes={name: values.shape for name, values in inputs.items()},
        threads=threads,
    )


def speedup(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Estimate:
    """before / after, above 1 is faster, with a 95 % interval.

    Within a session, the median over rounds of the ratio: the two calls of a round met the same machine.
    Over sessions, the geometric mean of these medians, with Student's interval of their logarithms: what
    differs between sessions (memory layout, minutes of a busy machine) is in it, however many rounds
    there are.

    Args:
        before: Seconds, one list a session and one entry a round.
        after: Seconds of the same rounds.

    Raises:
        ValueError: There are fewer than 2 sessions, the rounds are not the same, or a time is not above 0.
    """
    rounds = [len(session) for session in before]
    if rounds != [len(session) for session in after] or len(rounds) < 2 or min(rounds) < 1:
        raise ValueError(
            "speedup needs the same rounds of at least 2 sessions, "
            f"got {rounds} and {[len(session) for session in after]}"
        )
    if min(min(session) for session in (*before, *after)) <= 0:
        raise ValueError("a time is not above 0 s: the call is too short for the clock")
    logs = np.array(
        [math.log(np.median(np.array(b) / np.array(a))) for b, a in zip(before, after, strict=True)]
    )
    return _students_interval(logs)


def _students_interval(logs: np.ndarray) -> Estimate:
    """The exponential of the mean of ``logs``, (sessions,), and of its interval."""
    from scipy.special import stdtrit  # lazily, as everything of scipy: 0.1 s

    mean, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs))
    half = float(stdtrit(len(logs) - 1, (1 + CONFIDENCE) / 2)) * error
    low, value, high = (math.exp(mean + by) for by in (-half, 0.0, half))
    return Estimate(value=value, low=low, high=high, confidence=CONFIDENCE)


def _session(
    loads: Sequence[Callable[[], Call]], seconds: float, rounds: range, shuffle: Callable[[list[int]], None]
) -> list[list[float]]:
    """Seconds of each call, one entry a round; as many rounds as ``rounds`` and the time allow."""
    calls = [load() for load in loads]
    for call in calls * WARM_UP_ROUNDS:
        call()
    samples: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    with _garbage_collection_off():
        deadline = time.perf_counter() + seconds
        for done in range(rounds[-1]):
            if done >= rounds[0] and time.perf_counter() >= deadline:
                break
            shuffle(order)
            for index in order:
                samples[index].append(_timed(calls[index]))
    return samples


def _timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
