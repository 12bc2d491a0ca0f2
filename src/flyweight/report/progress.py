"""Progress bars on a terminal; gone when the work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flyweight.progress import SILENT, Label
from flyweight.progress import Progress as ProgressProtocol
from flyweight.report.wording import printable

Item = TypeVar("Item")

REFRESHES_A_SECOND = 4  # rich's 10 take time from what is being measured


@contextmanager
def terminal_progress(console: Console, *, quiet: bool = False) -> Iterator[ProgressProtocol]:
    """Bars on ``console`` while the block runs; nothing if it is no terminal or ``quiet``."""
    if quiet or not console.is_terminal:
        yield SILENT
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=REFRESHES_A_SECOND) as shown:
        yield TerminalProgress(shown)


@final
class TerminalProgress:
    """Shows each stage as a line and each loop as a bar, the inner ones below."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def track(self, items: Sequence[Item], label: Label) -> Iterable[Item]:
        """The items, shown as a bar while they are consumed."""
        task = self._shown.add_task(_text(label), total=len(items))
        try:
            for item in items:
                yield item
                self._shown.update(task, advance=1, description=_text(label))
        finally:
            self._shown.remove_task(task)

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """A piece of work of unknown length."""
        task = self._shown.add_task(printable(label), total=None)
        try:
            yield
        finally:
            self._shown.remove_task(task)


def _text(label: Label) -> str:
    return printable(label if isinstance(label, str) else label())
