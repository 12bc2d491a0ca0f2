"""The commands and code of the README, run as a newcomer would: in an empty folder, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A fenced block, and the comment before it if there is one: "<!-- not run: why -->" exempts it.
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL
)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#\s]+)(?:#[^)]*)?\)")
# What the README says of machines on which int8 is slower: one reason, and where the attempt is.
_SLOWER = re.compile(
    r"flyweight: refused: it is slower than the original: [^;]*; --max-latency [^;]* "
    r"\(the best attempt is in (?P<kept>\S+), nothing is in (?P<out>\S+)\)"
)
SLOWER = (
    "it is slower than the original: 1.61\N{MULTIPLICATION SIGN} slower [1.56, 1.67]; "
    "--max-latency sets a bound of your own instead"
)
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the blocks that are to be run."""
    return [(m["language"], m["text"]) for m in _BLOCK.finditer(page.read_text()) if m["reason"] is None]


def run(language: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A block, run where the installed ``flyweight`` is on the path."""
    command = {"bash": ["bash", "-euo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}[
        language
    ]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300
    )


def refused_for_speed(done: subprocess.CompletedProcess[str]) -> tuple[str, str] | None:
    """(the folder asked for, where the attempt is) of a refusal for which the machine is the only reason."""
    match = _SLOWER.fullmatch(done.stderr.strip().rpartition("\n")[2])
    return (match["out"], match["kept"]) if match is not None and done.returncode == 3 else None


def test_what_the_readme_says_works_in_an_empty_folder(tmp_path: Path) -> None:
    small = "digits-small"
    for language, text in blocks(ROOT / "README.md"):
        for command in text.splitlines() if language == "bash" else [text]:
            done = run(language, command.replace("digits-small ", f"{small} "), tmp_path)
            refused = refused_for_speed(done)
            assert done.returncode == 0 or refused, f"{command}\n{done.stdout}\n{done.stderr}"
            small = refused[1] if refused else small
    assert (tmp_path / small / "report.html").is_file()
    assert len((tmp_path / "answers.csv").read_text().splitlines()) > 1


@pytest.fixture
def yours(tmp_path: Path) -> Path:
    """A folder with the files that the quickstart speaks of: a trained network and data."""
    import numpy as np
    from safetensors.torch import save_file

    from flyweight.demo import digits, train

    splits = digits()
    (tmp_path / "net.py").write_text("from flyweight.demo import DigitsNet as make_model\n")
    save_file(train(splits.train).state_dict(), tmp_path / "net.safetensors")
    parts = (splits.train, splits.evaluation)
    x = np.concatenate([np.asarray(part.inputs["image"]) for part in parts]) / np.float32(16)
    y = np.concatenate([np.asarray(part.targets) for part in parts])
    np.savez(tmp_path / "digits.npz", x=x, y=y)
    np.savez(tmp_path / "new.npz", x=x[:5])
    return tmp_path


@pytest.mark.slow  # a minute; the README's commands are the same, and are run each time
def test_what_the_quickstart_says_works(yours: Path) -> None:
    small = "small"
    for language, text in blocks(ROOT / "docs" / "quickstart.md"):
        if language == "yaml":
            continue
        for command in text.splitlines() if language == "bash" else [text]:
            quick = re.sub(r"^flyweight (compress|benchmark) ", r"\g<0>--seconds 0.5 ", command)
            quick = quick.replace("Settings(", "Settings(seconds=0.5, ")
            done = run(language, re.sub(r"(?<= )small(?= --)", small, quick), yours)
            refused = refused_for_speed(done)
            assert done.returncode == 0 or refused, f"{command}\n{done.stdout}\n{done.stderr}"
            small = refused[1] if refused else small
    assert len((yours / "answers.csv").read_text().splitlines()) == 6


def test_the_settings_file_of_the_quickstart_is_one(tmp_path: Path) -> None:
    from flyweight.settings_file import read_settings_file

    texts = [text for language, text in blocks(ROOT / "docs" / "quickstart.md") if language == "yaml"]
    assert texts
    for text in texts:
        (tmp_path / "flyweight.yaml").write_text(text)
        assert read_settings_file(tmp_path / "flyweight.yaml")["out"] == "small"


def test_the_metrics_of_the_page_of_tasks_give_one_number_an_example() -> None:
    import numpy as np

    written: dict[str, Callable[..., np.ndarray]] = {}
    for language, text in blocks(ROOT / "docs" / "tasks.md"):
        assert language == "python"
        exec(text, written)
    outputs, classes = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]], np.array([0, 1, 1, 1])
    assert written["balanced_accuracy"](outputs, classes).mean() == pytest.approx((1 + 2 / 3) / 2)
    assert written["f1_of_labels"](outputs, outputs).tolist() == [1, 1, 1, 1]
    assert written["closeness"](outputs[:, :1], np.zeros(4, np.float32)).tolist() == [-1, 0, 0, 0]


@pytest.mark.parametrize(
    ("reasons", "code", "accepted"),
    [
        (SLOWER, 3, True),
        (SLOWER, 1, False),
        (f"{SLOWER}; it is bad", 3, False),
        ("quality drops by 0.1 (95 % interval 0.1 to 0.2), 0.01 is allowed", 3, False),
    ],
)
def test_a_refusal_is_what_the_readme_says_only_where_the_machine_is_the_reason(
    reasons: str, code: int, accepted: bool
) -> None:
    told = f"flyweight: refused: {reasons} (the best attempt is in a-refused, nothing is in a)\n"
    refused = refused_for_speed(subprocess.CompletedProcess([], code, "", told))
    assert refused == (("a", "a-refused") if accepted else None)


@pytest.mark.parametrize(("code", "made"), [(0, 0), (3, 0), (1, 2)])
def test_make_demo_succeeds_where_the_demo_ends_as_the_readme_says(
    tmp_path: Path, code: int, made: int
) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = tmp_path / ".venv" / "bin" / "flyweight"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\nexit {code}\n")
    command.chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == made, done.stderr


def test_the_python_example_is_six_statements_or_fewer() -> None:
    import ast

    examples = [text for language, text in blocks(ROOT / "README.md") if language == "python"]
    assert examples
    assert all(len(ast.parse(text).body) <= 6 for text in examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = [m["target"] for m in _LINK.finditer(page.read_text()) if "://" not in m["target"]]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_row_of_the_plan_has_one_state() -> None:
    rows = re.findall(
        r"^\| ([A-H]\d+) \| [^|]+ \| (works|partly|not yet)", (ROOT / "docs/features.md").read_text(), re.M
    )
    sizes = {"A": 8, "B": 13, "C": 7, "D": 5, "E": 4, "F": 7, "G": 4, "H": 7}
    assert [row for row, _ in rows] == [
        f"{part}{i}" for part, size in sizes.items() for i in range(1, size + 1)
    ]


def test_a_feature_that_works_names_the_command_that_shows_it() -> None:
    rows = re.findall(r"^\| [A-H]\d+ \|.*\| works.*$", (ROOT / "docs/features.md").read_text(), re.M)
    assert rows
    assert all("`" in row.rsplit("|", 2)[1] or "notes" in row.rsplit("|", 2)[1] for row in rows)
