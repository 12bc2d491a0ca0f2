"""ONNX files timed in one loop, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims import FLOAT, OURS, Check, compared
from flyweight.evaluate.timing import interleave, speedup
from flyweight.run.onnxruntime import onnxruntime_module

Feeds = Callable[[Any], Mapping[str, np.ndarray]]  # a session to its arrays by input name
Loads = Mapping[str, Callable[[], Callable[[], object]]]  # candidate to what gives the call to time
Samples = Mapping[str, Sequence[Sequence[float]]]  # candidate to seconds, by session and round


def open_session(path: Path, threads: int) -> Any:
    """An ONNX Runtime session whose threads stop spinning after a call, and leave the next one alone."""
    onnxruntime = onnxruntime_module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def loading(path: Path, threads: int, feeds: Feeds) -> Callable[[], Callable[[], object]]:
    """Opens the file anew, and gives one run of it on ``feeds`` of the session."""

    def load() -> Callable[[], object]:
        session = open_session(path, threads)
        given = feeds(session)
        return lambda: session.run(None, given)

    return load


def only(array: np.ndarray) -> Feeds:
    """For a file of one input, whatever its name."""
    return lambda session: {session.get_inputs()[0].name: array}


def timed(loads: Loads, *, seconds: float) -> Samples:
    """Seconds of each candidate's call; every round calls all of them, every session loads all anew."""
    return dict(zip(loads, interleave(list(loads.values()), seconds=seconds), strict=True))


def speed_checks(
    where: str, samples: Samples, *, rivals: Sequence[str], called: str = "rival"
) -> tuple[Check, Check]:
    """Speed over the fastest of ``rivals``, which must be at least 1; and over the float file, as a record.

    Args:
        where: Begins the names of the checks, ``"resnet20"``.
        samples: Of `FLOAT`, every rival, and `OURS` if a file was shipped.
        rivals: Those the bar is about; the others are reported.
        called: What one of them is, where they are not all there are.
    """
    best = max(rivals, key=lambda name: speedup(samples[FLOAT], samples[name]).value)
    return (
        _over(f"{where}: speed over the fastest {called}", samples, best, bar=1.0),
        _over(f"{where}: speed over fp32", samples, FLOAT, bar=None),
    )


def _over(what: str, samples: Samples, reference: str, *, bar: float | None) -> Check:
    speeds = {name: speedup(samples[reference], times) for name, times in samples.items()}
    ours = speeds.get(OURS)
    values = {name: speed.value for name, speed in speeds.items()}
    return compared(what, values, bar=bar, spread=None if ours is None else (ours.low, ours.high))
