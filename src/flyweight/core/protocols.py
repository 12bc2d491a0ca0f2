"""The whole extension API. Implementations need not inherit from these.

Third parties register theirs as entry points in the groups ``flyweight.technique``, ``flyweight.exporter``,
``flyweight.runtime`` and ``flyweight.task``; `flyweight.testing.contracts` holds the tests they must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from flyweight.core.cost import Cost
from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Stage
from flyweight.core.report import Artifact

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from flyweight.data.examples import Examples, Splits
    from flyweight.model import Model
    from flyweight.tasks.scores import Scores

    Arrays = Mapping[str, np.ndarray]  # input name -> (batch, ...)
    Session = Callable[[Arrays], Sequence[np.ndarray]]
    Batches = Sequence[Mapping[str, Tensor]]  # calibration batches, input name -> (batch, ...)


@runtime_checkable
class Technique(Protocol):
    """Proposes decisions, predicts their effect without tensors, carries them out."""

    @property
    def name(self) -> str:
        """Its name in the catalog."""

    @property
    def stage(self) -> Stage:
        """When it is applied."""

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every decision worth considering; one a layer, default settings first."""

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """``profile`` after the decision. Raises ValueError when the settings are out of range."""

    def apply(self, model: Model, decision: Decision, batches: Batches) -> None:
        """Change ``model`` in place; the caller owns the copy."""


@runtime_checkable
class Device(Protocol):
    """Predicts the cost of a profile; knows nothing of techniques."""

    @property
    def name(self) -> str:
        """Its name."""

    def estimate(self, profile: ModelProfile) -> Cost:
        """The cost of one forward pass at batch 1."""


@runtime_checkable
class Exporter(Protocol):
    """Writes a model in one file format, and says beforehand what that format can keep."""

    @property
    def format(self) -> str:
        """Name of the format."""

    @property
    def model_file(self) -> str:
        """Name of the file it writes inside an artifact."""

    def lower(self, profile: ModelProfile) -> ModelProfile:
        """``profile`` as this format stores and runs it: what it cannot keep becomes dense or wider."""

    def export(self, model: Model, path: Path) -> None:
        """Write the model file. Raises UnsupportedError, naming the operator, for what it cannot write."""


@runtime_checkable
class Runtime(Protocol):
    """Runs models of some formats."""

    @property
    def name(self) -> str:
        """Its name in the catalog."""

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats it runs."""

    def load(self, source: Artifact | Model, threads: int) -> Session:
        """A callable from named input arrays to the outputs. Raises ArtifactError for a damaged file."""


@runtime_checkable
class Task(Protocol):
    """What the model is for: which inputs it is asked, and how good its outputs are."""

    @property
    def name(self) -> str:
        """Its name in the catalog, or ``file.py:metric``."""

    @property
    def metric_name(self) -> str:
        """Name of the metric, ``"top-1 accuracy"``; higher is better."""

    @property
    def class_targets(self) -> bool | None:
        """Whether the target column is read as classes; None lets its type decide."""

    def queries(self, splits: Splits) -> Examples:
        """What the model is run on for the evaluation split. Raises InputError if the data do not fit."""

    def score(self, outputs: np.ndarray, splits: Splits) -> Scores:
        """Scores of the evaluation split from the model's first output, (queries, ...); raises likewise."""

    def metric(self, scores: Scores) -> float:
        """The metric of some scored examples; called again for each bootstrap resample."""

    def answers(self, outputs: np.ndarray, classes: Sequence[str]) -> Mapping[str, Sequence[object]]:
        """Post-processing: named columns, one value an example, as they are written to an answers file."""
