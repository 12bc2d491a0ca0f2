"""Errors a caller can act on: what, where, what to do. Wrong arguments stay ValueError and TypeError."""

from __future__ import annotations

from collections.abc import Mapping


class FlyweightError(Exception):
    """Base of all below."""


class InputError(FlyweightError):
    """A file or object the user gave cannot be used: missing, unreadable, of the wrong shape or content."""


class UnsupportedError(FlyweightError):
    """A layer, operator or format that cannot be handled; says where, and what to do."""


class MissingDependency(FlyweightError, ImportError):
    """An optional package is not installed."""


class BudgetInfeasible(FlyweightError):
    """No plan fits. ``best`` is the closest one, ``excess`` the relative overshoot of each violated bound."""

    def __init__(self, excess: Mapping[str, float], best: object, pareto: tuple[object, ...] = ()) -> None:
        self.excess, self.best, self.pareto = dict(excess), best, pareto
        worst = ", ".join(
            f"{name} {over:+.1%}" for name, over in sorted(excess.items(), key=lambda item: -item[1])
        )
        super().__init__(f"no plan fits the budget; the closest is over by: {worst}")


class ContractError(FlyweightError):
    """A technique broke a promise: shapes changed, or storage is not what it predicted."""


class ParityError(FlyweightError):
    """The exported file does not compute what the PyTorch reference computes."""


class ArtifactError(FlyweightError):
    """An artifact or one of its files is damaged, of another version, or not an artifact."""
