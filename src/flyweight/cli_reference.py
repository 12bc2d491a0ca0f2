"""docs/cli.md: every command and option, from what ``--help`` shows."""

from __future__ import annotations

import sys
from typing import Any

import typer

from flyweight.cli import app

HEAD = """# Command line

Written by `python -m flyweight.cli_reference > docs/cli.md` from what `--help` shows.
Exit codes: 0 done, 1 failed, 2 wrong command line, 3 refused, 130 after Ctrl-C, 143 after SIGTERM.
"""


def page(commands: typer.Typer) -> str:
    """The page of all commands, in Markdown."""
    group: Any = typer.main.get_command(commands)  # typer brings click's classes under its own names
    return "\n".join([HEAD, *(_section(name, command) for name, command in group.commands.items())])


def _section(name: str, command: Any) -> str:
    about, _, example = " ".join(command.help.split()).partition(" Example: ")
    rows = [f"| {_named(parameter)} | {_told(parameter)} |" for parameter in command.params]
    table = ["| | |", "|---|---|", *rows]
    return "\n".join([f"## flyweight {name}", "", about, "", f"`{example}`", "", *table, ""])


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    names = [f"`{name}`" for name in parameter.opts]
    return ", ".join(names) + (f" `{parameter.metavar}`" if parameter.metavar else "")


def _told(parameter: Any) -> str:
    given = parameter.default
    default = "" if given is None or given is False or given == [] else f" Default: `{given}`."
    return f"{parameter.help or ''}{default}{' Needed.' if parameter.required else ''}".replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page(app))
