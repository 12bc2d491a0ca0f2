"""Commands from functions of option groups, and their failures as one line and an exit code."""

from __future__ import annotations

import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

import typer
from rich.console import Console

from flyweight.cli_signals import sigterm_interrupts
from flyweight.errors import FlyweightError
from flyweight.report.wording import printable

FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143
TRACEBACK = "--traceback"
NOTHING_LEFT = "nothing half-made is left"

# What click calls UsageError; typer has it under this name only, in releases with and without click.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Interrupted(Exception):
    """A command was interrupted; what it says of what it left behind."""


def spread(function: Callable[..., int]) -> Callable[..., int]:
    """The function with the fields of its option groups as parameters, as typer reads commands.

    Args:
        function: Every parameter is annotated with a frozen dataclass of `flyweight.cli_options`.
    """
    groups: dict[str, type[Any]] = {k: v for k, v in get_type_hints(function).items() if k != "return"}
    hints = {name: get_type_hints(group, include_extras=True) for name, group in groups.items()}
    owners = {field.name: name for name, group in groups.items() for field in fields(group)}

    def command(**values: object) -> int:
        own: dict[str, dict[str, object]] = {name: {} for name in groups}
        for key, value in values.items():
            own[owners[key]][key] = value
        given = {name: group(**own[name]) for name, group in groups.items()}
        try:
            return function(**given)
        except KeyboardInterrupt as interrupt:  # typer would make an exit code of it
            raise _Interrupted("; ".join(getattr(interrupt, "__notes__", ()))) from interrupt

    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=hints[owner][field.name],
        )
        for owner, group in groups.items()
        for field in fields(group)
    ]
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    return command


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line; failures are one line on standard error.

    Returns:
        What the command returned; 1 for a failure, 2 for a wrong command line, 130 after Ctrl-C, 143 after
        SIGTERM.
    """
    left = NOTHING_LEFT
    try:
        with sigterm_interrupts() as terminated:
            code = _called(app, list(arguments) or ["--help"])
    except _Interrupted as interrupt:
        code, left = INTERRUPTED, str(interrupt) or NOTHING_LEFT
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except UsageError as error:
        return _told(error.format_message(), MISUSED)  # type: ignore[attr-defined]
    except FlyweightError as error:
        return _told(str(error), FAILED, arguments)
    except Exception as error:  # noqa: BLE001 - the last resort: nobody else is left to tell the user
        text = f"unexpected {type(error).__name__}: {error}; this is a bug: please report it"
        hint = "" if TRACEBACK in arguments else f" with what {TRACEBACK} prints"
        return _told(text + hint, FAILED, arguments)
    if code != INTERRUPTED:
        return code or 0
    exec("")  # an interrupt inside of another exec has `python -m` die of SIGINT at its end; this forgets it
    if terminated():
        return _told(f"terminated; {left}", TERMINATED)
    return _told(f"interrupted; {left}", INTERRUPTED)


def _called(app: typer.Typer, arguments: list[str]) -> Any:
    """What the command returns; without warnings of packages, which are for those who program with them."""
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        if TRACEBACK not in arguments:
            warnings.simplefilter("ignore")
        return command.main(arguments, prog_name="flyweight", standalone_mode=False)


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _told(text: str, code: int, arguments: Sequence[str] = ()) -> int:
    if TRACEBACK in arguments:
        traceback.print_exc()
    Console(stderr=True, soft_wrap=True).print(f"flyweight: {printable(text)}", markup=False, highlight=False)
    sys.stderr.flush()
    return code
