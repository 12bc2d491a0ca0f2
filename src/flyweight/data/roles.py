"""What the columns of a table are for, and what a model expects of new examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, final

from flyweight.errors import InputError
from flyweight.settings import Settings

Taken = Literal["images", "texts", "numbers"]  # what a model takes, after what its preprocessing begins with


@final
@dataclass(frozen=True)
class Roles:
    """What columns are for; names as in the table, which are positions where it has no header.

    Attributes:
        inputs: In the order in which the model is given them.
        target: None where there is none.
        slices: Whose values are compared.
        guessed: Why ``target`` was taken where nobody named it: ``"as the last"``.
    """

    inputs: tuple[str, ...]
    target: str | None
    slices: tuple[str, ...] = ()
    guessed: str = ""


@final
@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is known of the examples that a model takes.

    Attributes:
        kind: None where nothing is known.
        inputs: Columns of the table it was made with; () where it was made with something else.
        target: The target column of that table.
    """

    kind: Taken | None = None
    inputs: tuple[str, ...] = ()
    target: str | None = None


NOTHING = Expected()


def with_roles(settings: Settings, roles: Roles | None) -> Settings:
    """The settings with the columns that were read, so that they are read again."""
    if roles is None:
        return settings
    data = replace(settings.data_settings, inputs=roles.inputs, target=roles.target)
    return replace(settings, data_settings=data)


@contextmanager
def naming_target(roles: Roles | None) -> Iterator[None]:
    """Inside, errors of targets name the column they are in, and how to name another, if it was guessed."""
    try:
        yield
    except InputError as error:
        if roles is None or not roles.guessed:
            raise
        raise InputError(
            f"{error}; column {roles.target!r} was taken as the target, {roles.guessed}: "
            "name another with --target-column"
        ) from error
