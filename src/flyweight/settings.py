"""Settings of one run, as flyweight.yaml holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, final

from flyweight.core.cost import Budget
from flyweight.core.plan import Scalar
from flyweight.recover.settings import TrainingSettings

DEFAULT_QUALITY_DROP = 0.01  # one point; what `compress` allows when the budget does not say
DEFAULT_CALIBRATION_SIZE = 512
DEFAULT_SECONDS = 6.0

# Tasks whose metric cannot exceed 1: a drop of 1 or more would allow anything, and is a slip for 1 %.
METRICS_UP_TO_ONE = frozenset({"classification", "similarity"})

# Key in flyweight.yaml to field of `Budget`.
BUDGET_KEYS: Mapping[str, str] = {
    "max_size": "storage_bytes",
    "max_latency": "latency_s",
    "max_drop": "quality_drop",
    "max_ram": "ram_bytes",
    "max_energy": "energy_j",
}
# Units of `Budget`, without which flyweight.yaml takes no bound; that of a drop is the metric's own.
_BUDGET_UNITS: Mapping[str, str] = {"max_size": "B", "max_latency": "s", "max_ram": "B", "max_energy": "J"}


@final
@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What of the data is used, and how.

    Attributes:
        inputs: Names of the input columns; () lets the kind of data decide.
        target: Name of the target column; None lets the kind of data decide.
        slices: Columns whose values are compared before and after (quality on each value).
        calibration_size: Examples that activation ranges are measured on.
        evaluation_size: Evaluation examples used; None is all.
        evaluation_fraction: Part held out for evaluation where the data come unsplit.
        seed: Of the split.
    """

    inputs: tuple[str, ...] = ()
    target: str | None = None
    slices: tuple[str, ...] = ()
    calibration_size: int = DEFAULT_CALIBRATION_SIZE
    evaluation_size: int | None = None
    evaluation_fraction: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.calibration_size < 1:
            raise ValueError(f"calibration_size must be at least 1, got {self.calibration_size}")
        if self.evaluation_size is not None and self.evaluation_size < 1:
            raise ValueError(f"evaluation_size must be at least 1, got {self.evaluation_size}")
        if not 0 < self.evaluation_fraction < 1:
            raise ValueError(f"evaluation_fraction must be between 0 and 1, got {self.evaluation_fraction}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything `flyweight compress` needs.

    Attributes:
        model: ``file.py:factory``, ``package.module:name``, or a Hugging Face directory or hub id.
        data: A folder or file, or ``file.py:loader``.
        out: Folder to write.
        task: A name of the catalog, or ``file.py:metric``.
        task_settings: Keyword arguments of the task, ``{"top_k": 5}``.
        classes: The model's classes in the order of its outputs; () is the model's own, where it names them,
            else the data's in alphabetical or numerical order.
        weights: A safetensors file (or a PyTorch state dict) for a factory that makes untrained modules.
        model_arguments: Keyword arguments of the factory.
        preprocessing: What `flyweight.data.declared.declared_steps` takes, ``{"resize": 256, "crop": 224}``.
        techniques: Tried in this order; () tries the automatic set.
        technique_settings: ``{"bits": 4}``; of the automatic set, those that cannot take them are left out.
        plan: A plan file to carry out instead of techniques.
        budget: What the result has to fit; `DEFAULT_QUALITY_DROP` is allowed where it does not say.
        data_settings: See `DataSettings`.
        training: Of the compressed model; see `TrainingSettings`.
        format: The file format that is written.
        runtime: The runtime that is measured.
        threads: Threads of the runtime; 0 is as many as the machine has cores.
        batch_size: Examples in one timed call.
        seconds: Time given to the latency comparison.
        overwrite: Replace ``out`` if it holds an artifact already.
    """

    model: str
    data: str
    out: str
    task: str = "classification"
    task_settings: Mapping[str, Scalar] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    weights: str | None = None
    model_arguments: Mapping[str, Scalar] = field(default_factory=dict)
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    techniques: tuple[str, ...] = ()
    technique_settings: Mapping[str, Scalar] = field(default_factory=dict)
    plan: str | None = None
    budget: Budget = field(default_factory=lambda: Budget(quality_drop=DEFAULT_QUALITY_DROP))
    data_settings: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    format: str = "onnx"
    runtime: str = "onnxruntime"
    threads: int = 0
    batch_size: int = 1
    seconds: float = DEFAULT_SECONDS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.budget.quality_drop is None:
            object.__setattr__(self, "budget", replace(self.budget, quality_drop=DEFAULT_QUALITY_DROP))
        drop = self.budget.quality_drop
        if self.task in METRICS_UP_TO_ONE and drop is not None and drop >= 1:
            raise ValueError(
                f"max_drop {drop:g} is {drop:.0%} of a metric that is at most 1; "
                f"write {drop:g}% or {drop / 100:g}"
            )
        twice = next((name for name in self.classes if self.classes.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"classes names {twice!r} twice")
        if self.classes and self.task == "regression":
            raise ValueError("classes are for tasks whose targets are classes, and regression has numbers")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, got {self.threads}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be finite and above 0, got {self.seconds}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values in the layout of flyweight.yaml, which `settings_file.settings_from` reads."""
        parts = ("budget", "data_settings", "training")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in parts}
        nested = asdict(self.data_settings) | asdict(self.training)
        bounds = {key: _bound(key, getattr(self.budget, name)) for key, name in BUDGET_KEYS.items()}
        return {key: _plain(value) for key, value in (own | nested | bounds).items()}


def _bound(key: str, value: float | None) -> float | str | None:
    """A bound as the file holds it; reading it gives the same number."""
    return value if value is None or key not in _BUDGET_UNITS else f"{value!r}{_BUDGET_UNITS[key]}"


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
