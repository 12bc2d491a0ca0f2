"""Progress of long work, shown by whoever called: the terminal, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, final, runtime_checkable

Item = TypeVar("Item")
Label = str | Callable[[], str]  # or what gives it, asked again after each item


@runtime_checkable
class Progress(Protocol):
    """Told of each stage as it begins, and of each step inside one."""

    def track(self, items: Sequence[Item], label: Label) -> Iterable[Item]:
        """The items, shown as a bar while they are consumed."""

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """A piece of work of unknown length."""


@final
class Silent:
    """Shows nothing: the default of every function that takes a progress."""

    def track(self, items: Sequence[Item], label: Label) -> Iterable[Item]:
        """The items as they are."""
        return items

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """Nothing."""
        yield


SILENT = Silent()
