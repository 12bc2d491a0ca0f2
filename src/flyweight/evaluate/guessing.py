"""Whether the original does better than guessing. Where it does not, no drop can be measured."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from flyweight.core.protocols import Task
from flyweight.core.report import Estimate
from flyweight.errors import InputError
from flyweight.tasks.scores import Scores

CURE = (
    "check that its weights are loaded (--weights), that the classes stand in the order of its outputs "
    "(--classes), and that the preprocessing is the one it was trained with"
)


@runtime_checkable
class Guessable(Protocol):
    """A task may offer this: what its metric is without looking at the inputs."""

    def guesses(self, scores: Scores) -> tuple[float, float]:
        """(of answers drawn at random, of the best answer that is always the same)."""


def check_better_than_guessing(task: Task, scores: Scores, quality: Estimate) -> tuple[str, ...]:
    """Notes on an original that is hardly better.

    Args:
        task: Gives the metric.
        scores: Of the original.
        quality: Of the original.

    Raises:
        InputError: It is no better than the best constant answer, and not provably better than random ones.
    """
    if not isinstance(task, Guessable):
        return ()
    random, constant = task.guesses(scores)
    if quality.value > constant:
        return ()
    if constant >= 1.0 and quality.value >= 1.0:
        return (f"one and the same answer is right for all examples, so {task.metric_name} says little",)
    what = (
        f"the original's {task.metric_name} is {quality.value:.4g} on {len(scores)} examples, no more than "
        f"always giving the same answer ({constant:.4g})"
    )
    if quality.low <= random:
        raise InputError(f"{what}, so what compression costs cannot be measured: {CURE}")
    return (f"{what}: {CURE}",)
