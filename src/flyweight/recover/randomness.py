"""Random numbers that depend on nothing but where in the training they are drawn.

Every draw has a generator of its own, made from the seed and its place; so a training that was interrupted
goes on as if it had not been, and nothing is drawn from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random numbers are for."""

    ORDER = 0
    AUGMENTATION = 1
    FORWARD = 2


def generator_at(seed: int, stream: Stream, *place: int) -> torch.Generator:
    """A generator for one purpose at one place, such as an epoch and a batch in it."""
    return torch.Generator().manual_seed(_seed_at(seed, stream, *place))


@contextmanager
def forward_randomness(seed: int, step: int) -> Iterator[None]:
    """Inside, what modules draw by themselves (dropout) is decided by seed and step; restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed_at(seed, Stream.FORWARD, step))
        yield


def _seed_at(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
