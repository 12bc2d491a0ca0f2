"""The state of a training in one file: tensors as safetensors, the rest as JSON in its header.

The file is replaced as a whole, so a killed training leaves its last state. See docs/formats.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flyweight import _atomic
from flyweight.errors import InputError

CHECKPOINT_VERSION = 1
_KEY = "flyweight_training"


@final
@dataclass(frozen=True, kw_only=True)
class Point:
    """How far a training has come, and how well it does.

    Attributes:
        step: Steps taken.
        seconds: Spent, in all runs together.
        ended: Whether it is over, before its last step or at it.
        best_epoch: The epoch after which the best state was kept; 0 is before the training.
        best_metric: Of that state, on the examples held out; None where there is no metric.
        best_loss: Likewise.
        first_metric: Before the training.
        first_loss: Likewise.
    """

    step: int = 0
    seconds: float = 0.0
    ended: bool = False
    best_epoch: int = 0
    best_metric: float | None = None
    best_loss: float | None = None
    first_metric: float | None = None
    first_loss: float | None = None


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class State:
    """All that a training needs to go on.

    Attributes:
        point: See `Point`.
        now: Trained values, by name in the module.
        best: The same, in the best state.
        optimizer: Of the optimizer, by ``index of the parameter.name``.
    """

    point: Point
    now: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def training_folder(out: Path) -> Path:
    """Where the trainings of a run that writes ``out`` keep their states."""
    return out.with_name(f"{out.name}-training")


def forget_training(out: Path) -> None:
    """Remove the states that the trainings of a run kept; other files in their folder stay."""
    folder = training_folder(out)
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or holds other files
        folder.rmdir()


def write_checkpoint(path: Path, state: State, run: str) -> None:
    """Replace the file.

    Args:
        path: Of the file; its folder must be there.
        state: Of the training.
        run: What tells this training from others; `read_checkpoint` asks for the same.

    Raises:
        InputError: It cannot be written.
    """
    parts = {"now": state.now, "best": state.best, "optimizer": state.optimizer}
    tensors = {
        f"{part}/{name}": tensor.detach().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    head = json.dumps({"version": CHECKPOINT_VERSION, "run": run, "point": asdict(state.point)})
    _atomic.write_bytes(path, save(tensors, metadata={_KEY: head}))


def read_checkpoint(path: Path, run: str) -> State:
    """What `write_checkpoint` wrote.

    Raises:
        InputError: The file is damaged, of another version, or of another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = _head(path, (file.metadata() or {}).get(_KEY))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"the training state {path} cannot be read: {error}; delete it") from error
    if head["run"] != run:
        raise InputError(
            f"the training state {path} is of other settings, data or another model: give those it was begun "
            "with, or leave --resume out to begin anew"
        )
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        if part not in parts:
            raise InputError(f"the training state {path} holds an unknown tensor {name!r:.80}; delete it")
        parts[part][own] = tensor
    return State(point=_point(path, head["point"]), **parts)


def _head(path: Path, text: str | None) -> dict[str, Any]:
    try:
        head = json.loads(text or "")
    except ValueError as error:
        raise InputError(f"{path} is no training state; delete it") from error
    if not isinstance(head, dict) or set(head) != {"version", "run", "point"}:
        raise InputError(f"{path} is no training state; delete it")
    if head["version"] != CHECKPOINT_VERSION:
        raise InputError(
            f"the training state {path} has version {head['version']!r:.20}; "
            f"this release reads {CHECKPOINT_VERSION}: leave --resume out to begin anew"
        )
    return head


def _point(path: Path, raw: object) -> Point:
    names = [field.name for field in fields(Point)]
    if not isinstance(raw, dict) or set(raw) != set(names):
        raise InputError(f"the training state {path} is malformed; delete it")
    for name, value in raw.items():
        if type(value) not in _KINDS[name]:
            raise InputError(f"the training state {path} is malformed: {name} is {value!r:.40}; delete it")
    return Point(**raw)


_WHOLE, _NUMBER = (int,), (int, float)
_KINDS: Mapping[str, tuple[type, ...]] = {
    "step": _WHOLE,
    "seconds": _NUMBER,
    "ended": (bool,),
    "best_epoch": _WHOLE,
    **dict.fromkeys(("best_metric", "best_loss", "first_metric", "first_loss"), (*_NUMBER, type(None))),
}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer by ``index.name``, parameters counted over its groups."""
    return {
        f"{index}.{name}": value
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back, in place, what `optimizer_tensors` gave.

    Raises:
        InputError: It is of other parameters.
    """
    parameters = _parameters(optimizer)
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise InputError(f"the training state has an optimizer of other parameters: {key!r:.60}")
        parameter = parameters[int(index)]
        if tensor.dim() and tensor.shape != parameter.shape:
            raise InputError(f"the training state has another shape for {key!r:.60} of the optimizer")
        optimizer.state[parameter][name] = tensor.clone()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
