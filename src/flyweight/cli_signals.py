"""SIGTERM as Ctrl-C: a command unwinds, removes what is half made, and exits.

Limits: Python looks at signals between its own steps, so the call of a runtime that is under way ends first.
A run that is killed outright meanwhile leaves folders, which the next one clears.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAME_WISH_S = 5.0  # ``timeout`` sends two at once; one that comes later means that the first was not heard


@contextmanager
def sigterm_interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM raises KeyboardInterrupt; what is given says whether one came.

    Outside of the main thread, or where somebody else decides what SIGTERM does, nothing changes.
    """
    came: list[float] = []

    def interrupt(*_: object) -> None:
        now = time.monotonic()
        if not came or now - came[-1] > SAME_WISH_S:
            came.append(now)
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield lambda: False
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield lambda: bool(came)
    finally:
        # After one, this process only ends: the second one of ``timeout`` must not change its exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if came else signal.SIG_DFL)
