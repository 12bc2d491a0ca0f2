"""Make trained models fit the device they have to run on, and prove it on the file that ships."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flyweight.core.cost import Budget as Budget
    from flyweight.core.cost import Cost as Cost
    from flyweight.core.plan import Decision as Decision
    from flyweight.core.plan import Plan as Plan
    from flyweight.core.plan import Stage as Stage
    from flyweight.core.report import Artifact as Artifact
    from flyweight.core.report import Report as Report
    from flyweight.data.examples import Examples as Examples
    from flyweight.data.examples import Splits as Splits
    from flyweight.data.preprocessing import Preprocessing as Preprocessing
    from flyweight.load.streamed_model import load_streamed as load_streamed
    from flyweight.model import Model as Model
    from flyweight.pipeline import compress as compress
    from flyweight.run.artifact import open_artifact as open_artifact
    from flyweight.settings import Settings as Settings
    from flyweight.streaming import StreamSettings as StreamSettings
    from flyweight.streaming import stream as stream

__version__ = "0.1.0"

_HOME = {
    "Artifact": "core.report",
    "Budget": "core.cost",
    "Cost": "core.cost",
    "Decision": "core.plan",
    "Examples": "data.examples",
    "Model": "model",
    "Plan": "core.plan",
    "Preprocessing": "data.preprocessing",
    "Report": "core.report",
    "Settings": "settings",
    "Splits": "data.examples",
    "Stage": "core.plan",
    "StreamSettings": "streaming",
    "compress": "pipeline",
    "load_streamed": "load.streamed_model",
    "open_artifact": "run.artifact",
    "stream": "streaming",
}
__all__ = [*sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"flyweight.{_HOME[name]}"), name)
    raise AttributeError(f"module 'flyweight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
