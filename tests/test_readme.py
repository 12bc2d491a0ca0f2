"""The commands and code of the README, run as a newcomer would: in an empty folder, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A fenced block, and the comment before it if there is one: "<!-- not run: why -->" exempts it.
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL
)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#\s]+)(?:#[^)]*)?\)")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the blocks that are to be run."""
    return [(m["language"], m["text"]) for m in _BLOCK.finditer(page.read_text()) if m["reason"] is None]


def run(language: str, text: str, folder: Path) -> None:
    """Run a block where the installed ``flyweight`` is on the path; it must succeed."""
    command = {"bash": ["bash", "-euo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}[
        language
    ]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_what_the_readme_says_works_in_an_empty_folder(tmp_path: Path) -> None:
    for language, text in blocks(ROOT / "README.md"):
        run(language, text, tmp_path)
    assert (tmp_path / "digits-small" / "report.html").is_file()
    assert len((tmp_path / "answers.csv").read_text().splitlines()) > 1


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
