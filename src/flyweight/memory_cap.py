"""A bound on the memory of this process: what goes beyond it fails, instead of the machine.

Bounded is the memory the process writes to (heap, anonymous mappings). Files mapped to be read do not
count: the system takes their pages back when it needs them.

Limits: Linux only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flyweight.errors import FlyweightError, InputError

# What torch says when malloc fails, which raises no class of its own, and the system of a library.
_SIGNS = (
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "not enough memory",
    "failed to map segment",
)


@contextmanager
def memory_cap(nbytes: float | None, flag: str) -> Iterator[None]:
    """Inside, memory is bounded; None bounds nothing.

    Args:
        nbytes: Of all that the process has, not only of what is new.
        flag: What the caller calls the bound, for the error.

    Raises:
        InputError: The bound was reached, or the system has none.
    """
    if nbytes is None:
        yield
        return
    if sys.platform != "linux":
        raise InputError(f"{flag} needs Linux; leave it out")
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (int(nbytes), before[1]))
    except ValueError as error:
        raise InputError(f"{flag} is above what this process may have ({before[1]} bytes)") from error
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError, FlyweightError) as error:
        if _is_shortage(error):
            raise InputError(
                f"{nbytes / 1e6:.0f} MB of memory ({flag}) do not suffice: a block and, layer by layer, the "
                "second moments of its inputs must fit in; give more, or a smaller --batch-size"
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is of memory that was not given."""
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False
