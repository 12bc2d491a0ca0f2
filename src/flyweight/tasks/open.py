"""From the name of a task, as the command line and flyweight.yaml hold it, to the task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from flyweight import catalog
from flyweight.core.plan import Scalar
from flyweight.core.protocols import Task
from flyweight.data.examples import Splits
from flyweight.errors import InputError
from flyweight.tasks.custom import Custom
from flyweight.tasks.similarity import Similarity


def open_task(spec: str, settings: Mapping[str, Scalar]) -> Task:
    """The task called ``spec``: a name of the catalog, or ``file.py:function``.

    Args:
        spec: What the user wrote.
        settings: Arguments of the task, ``{"top_k": 5}``; a function takes none.

    Raises:
        InputError: No task has that name, or it does not take these settings.
    """
    if ":" in spec:
        _check_names(spec, settings, known=())
        return Custom(spec)
    try:
        factory = catalog.get("task", spec)
    except ValueError as error:
        raise InputError(f"{error}; or name your own metric as file.py:function") from error
    _check_names(spec, settings, known=tuple(inspect.signature(factory).parameters))
    try:
        task: Task = factory(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"task {spec!r}: {error}") from error
    return task


def settle(task: Task, splits: Splits) -> Task:
    """The task with what it leaves to the data decided, so that its metric has one name.

    Raises:
        InputError: The data do not fit the task.
    """
    return task.settled(splits) if isinstance(task, Similarity) else task


def _check_names(spec: str, settings: Mapping[str, Scalar], known: tuple[str, ...]) -> None:
    unknown = sorted(set(settings) - set(known))
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise InputError(f"task {spec!r} has no setting {', '.join(unknown)}; {takes}")
