"""SIGTERM at a running command: it ends cleanly, wherever it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flyweight.cli_signals import sigterm_interrupts

TOLD = "flyweight: terminated; nothing half-made is left\n"
PATIENCE_S = 120.0

# One call of 32 pictures takes the runtime long enough that the signal comes in the middle of one.
NET = """
from torch import nn

def net() -> nn.Module:
    wide = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*wide, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
"""


@pytest.fixture
def running(tmp_path: Path):
    """A `compress` that measures the speed of a file: its process, folder and temporary folder."""
    folder, temporary = tmp_path / "folder", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    (folder / "nets.py").write_text(NET)
    (folder / "metrics.py").write_text("def any(outputs, targets):\n    return targets * 0.0\n")
    images = np.random.default_rng(0).standard_normal((64, 3, 64, 64)).astype(np.float32)
    np.savez(folder / "data.npz", x=images, y=np.arange(64) % 2)
    line = [sys.executable, "-m", "flyweight", "compress", "nets.py:net", "--data", "data.npz", "-o", "out"]
    options = [
        "--task",
        "metrics.py:any",
        "--technique",
        "weight_only",
        "--batch-size",
        "32",
        "--threads",
        "1",
        "--seconds",
        "60",
    ]
    process = subprocess.Popen(
        [*line, *options],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process, folder, temporary
    process.kill()
    process.communicate()


def wait_for(process: subprocess.Popen[str], temporary: Path, pattern: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(temporary.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("pattern", "signals"), [("*/original", 1), ("*/attempt-0/manifest.json", 1), ("*/attempt-0", 2)]
)
def test_sigterm_ends_a_command_cleanly(running, pattern: str, signals: int) -> None:
    process, folder, temporary = running
    before = sorted(folder.iterdir())
    wait_for(process, temporary, pattern)
    time.sleep(1.0)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, told) == (143, TOLD)
    assert list(temporary.glob("*flyweight*")) == []  # other packages keep caches there
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


COMMAND = """
import os, signal, sys
import typer
from flyweight import cli_command

app = typer.Typer()

@app.command()
def interrupted() -> None:
    exec("os.kill(os.getpid(), signal.SIGTERM)")

sys.exit(cli_command.run(app, ["--"]))
"""


def test_sigterm_inside_of_exec_is_no_other_exit_code(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    line = [sys.executable, "-m", "command"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (143, TOLD)


@pytest.fixture
def default():
    """SIGTERM as every process gets it, before and after."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_sigterm_is_what_it_was_where_none_came(default: None) -> None:
    with sigterm_interrupts() as came:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert not came()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_is_an_interrupt_inside_and_does_not_kill_the_process_that_ends(default: None) -> None:
    caught = False
    with sigterm_interrupts() as came:
        assert not came()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            caught = True
    assert caught
    assert came()
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_sigterm_does_not_disturb_the_clean_up(default: None) -> None:
    cleaned = False
    with sigterm_interrupts():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned = True
    assert cleaned


def test_a_handler_of_somebody_else_stays(default: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with sigterm_interrupts() as came:
        os.kill(os.getpid(), signal.SIGTERM)
    assert not came()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
