"""Errors a caller can act on: what, where, what to do. Wrong arguments stay ValueError and TypeError."""

from __future__ import annotations


class FlyweightError(Exception):
    """Base of all below."""


class InputError(FlyweightError):
    """A file or object the user gave cannot be used: missing, unreadable, of the wrong shape or content."""


class UnsupportedError(FlyweightError):
    """A layer, operator or format that cannot be handled; says where, and what to do."""


class NothingFound(UnsupportedError):
    """A technique finds nothing in the model that it could change, and has changed nothing."""


class MissingDependency(FlyweightError, ImportError):
    """An optional package is not installed."""


class ContractError(FlyweightError):
    """A technique broke a promise: shapes changed, or storage is not what it predicted."""


class ParityError(FlyweightError):
    """The exported file does not compute what the PyTorch reference computes."""


class ArtifactError(FlyweightError):
    """An artifact or one of its files is damaged, of another version, or not an artifact."""
