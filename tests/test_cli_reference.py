"""The page of all commands is what the commands are."""

from __future__ import annotations

from pathlib import Path

import typer

from flyweight.cli import app
from flyweight.cli_reference import page

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_are_now() -> None:
    assert PAGE.read_text() == page(app), "python -m flyweight.cli_reference > docs/cli.md"


def test_every_option_is_on_the_page_with_what_it_means() -> None:
    small = typer.Typer()

    @small.command()
    def one(
        out: str = typer.Option("here", "--out", "-o", help="Where to."),
        name: str = typer.Argument(..., metavar="NAME", help="Of a|b."),
    ) -> None:
        """Do it. Example: it one"""

    @small.command()
    def two() -> None:
        """Do more. Example: it two"""

    text = page(small)
    assert "| `--out`, `-o` | Where to. Default: `here`. |" in text
    assert "| `NAME` | Of a\\|b. Needed. |" in text
    assert "Do more.\n\n`it two`" in text
