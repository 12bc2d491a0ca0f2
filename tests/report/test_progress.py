"""Progress on a terminal, and none where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flyweight.progress import SILENT, Progress
from flyweight.report.progress import TerminalProgress, terminal_progress


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def printed(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_stages_and_items_are_shown_on_a_terminal():
    shown = console(terminal=True)
    with terminal_progress(shown) as progress:
        assert isinstance(progress, TerminalProgress)
        assert isinstance(progress, Progress)
        with progress.stage("Exporting [bold]net"):
            assert list(progress.track([1, 2, 3], "Evaluating")) == [1, 2, 3]
    assert "Exporting [bold]net" in printed(shown)
    assert "Evaluating" in printed(shown)


def test_a_failure_inside_takes_the_bars_away():
    shown = console(terminal=True)
    with pytest.raises(KeyError), terminal_progress(shown) as progress, progress.stage("Exporting"):
        raise KeyError("x")


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_nothing_is_shown_elsewhere(terminal, quiet):
    shown = console(terminal=terminal)
    with terminal_progress(shown, quiet=quiet) as progress:
        assert progress is SILENT
        assert list(progress.track([1, 2], "Evaluating")) == [1, 2]
    assert printed(shown) == ""
