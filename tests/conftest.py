"""Settings of every test, and the real data that some of them need."""

from __future__ import annotations

import gc
import os
import signal
import threading
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run, and no time limit for one example: machines of two cores are shared.
hypothesis.settings.register_profile("gate", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gate")

SHARED_VARIABLE = "FLYWEIGHT_SHARED"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and models that are not in the repository; the test is skipped without it."""
    folder = Path(os.environ.get(SHARED_VARIABLE, Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs real data: there is no folder {folder / 'data'}; set {SHARED_VARIABLE}")
    return folder.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files beside this one first, which take longest: two workers take file after file."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """What the imports made stays: looking through it again and again took a part of every test's time."""
    gc.collect()
    gc.freeze()


# A shell starts what runs in its background with interrupts ignored, and programs pass that on to theirs.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
