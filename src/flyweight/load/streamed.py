"""A model whose weights stay in their files: made without them, and given those of one part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from flyweight.errors import InputError, UnsupportedError
from flyweight.load.tensor_files import TensorFiles
from flyweight.load.weights import listed
from flyweight.model import copied

COUNTER = "num_batches_tracked"  # of batch norms; plays no part in inference


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """What ``make`` returns, in eval mode: parameters on the device "meta", without data; buffers as made.

    Memory that is only laid out (``torch.empty``, as layers do for their weights) is not taken at all.
    Meanwhile no other thread may make modules with weights.
    """

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or (parameter.is_meta and not parameter.requires_grad):
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]  # may return
    try:
        with _EmptyOnMeta():
            return make().eval()
    finally:
        hook.remove()


@final
class _EmptyOnMeta(TorchFunctionMode):
    """Makes ``torch.empty`` lay out nothing. Freed at once, it would still leave the heap in pieces."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


@final
@dataclass(frozen=True, eq=False)
class Streamed:
    """A module without weights, and the files that hold them.

    Attributes:
        module: Parameters on the device "meta".
        files: Tensors by the module's own names.
    """

    module: nn.Module
    files: TensorFiles

    def materialised(self, path: str) -> nn.Module:
        """A copy of the part at ``path`` with its weights, float32.

        Raises:
            InputError: A weight is not finite, or its file is damaged.
        """
        part = copied(self.module.get_submodule(path))
        self._fill(part, path)
        return part

    @contextmanager
    def resident(self, paths: Sequence[str]) -> Iterator[None]:
        """Inside, calls of the parts at ``paths`` load their weights before, and let go of them after.

        Parameters of modules that have parts themselves are loaded throughout: their code reads them itself.
        """
        handles = []
        loose = [path for path in paths if next(self.module.get_submodule(path).children(), None) is not None]
        empty = {path: _own(self.module.get_submodule(path)) for path in paths}
        try:
            for path in loose:
                self._load(path)
            for path in (path for path in paths if path not in loose):
                part = self.module.get_submodule(path)
                handles.append(part.register_forward_pre_hook(lambda *_, path=path: self._load(path)))
                handles.append(
                    part.register_forward_hook(
                        lambda *_, path=path: _restore(self.module.get_submodule(path), empty[path]),
                        always_call=True,
                    )
                )
            yield
        finally:
            for handle in handles:
                handle.remove()
            for path in paths:
                _restore(self.module.get_submodule(path), empty[path])

    def _load(self, path: str) -> None:
        """Give the module at ``path`` its own parameters and buffers, not those of its parts, in place."""
        module = self.module.get_submodule(path)
        for name in (*_own(module), *module._buffers):
            self._set(module, name, f"{path}.{name}" if path else name)

    def _fill(self, part: nn.Module, path: str) -> None:
        shared: dict[int, nn.Parameter] = {}
        for inner, module in part.named_modules():
            prefix = ".".join(filter(None, (path, inner)))
            for name, empty in _own(module).items():
                if id(empty) in shared:
                    module._parameters[name] = shared[id(empty)]
                else:
                    self._set(module, name, ".".join(filter(None, (prefix, name))))
                    shared[id(empty)] = module._parameters[name]
            for name in module._buffers:
                self._set(module, name, ".".join(filter(None, (prefix, name))))

    def _set(self, module: nn.Module, name: str, full: str) -> None:
        stored = self.stored_name(full)
        if stored is None:
            return
        value = self.files.floats(stored)
        _check_values(value, full, parameter=name in module._parameters)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[name] = value

    def stored_name(self, name: str) -> str | None:
        """What the files call a tensor of the module, by any of its names; None where they lack it."""
        if name in self.files.tensors:
            return name
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        own = parameters.get(name)
        if own is None:
            return None
        return next((n for n, p in parameters.items() if p is own and n in self.files.tensors), None)


def streamed(module: nn.Module, files: TensorFiles, source: str) -> Streamed:
    """The module with its files, after both were compared.

    Args:
        module: From `without_weights`.
        files: Its weights.
        source: What to call them in errors.

    Raises:
        InputError: Weights are missing, unexpected, or of another shape: one sentence names them.
        UnsupportedError: A parameter has data already.
    """
    filled = next((name for name, p in module.named_parameters() if not p.is_meta), None)
    if filled is not None:
        raise UnsupportedError(
            f"weight {filled!r} is put into the model in a way that takes memory for all weights: "
            "let the factory make layers, and leave their weights to --weights"
        )
    result = Streamed(module, files)
    lost = [n for n, b in module.named_buffers() if b.is_meta and n not in files.tensors]
    if lost:
        raise UnsupportedError(
            f"buffer {lost[0]!r} is made by torch.empty, and {source} lacks it: make it by torch.zeros"
        )
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: stored.shape for name, stored in files.tensors.items()}
    wanted = [name for name in own if not name.endswith(COUNTER)]
    problems = (
        *listed("missing", [name for name in wanted if result.stored_name(name) is None]),
        *listed("unexpected", [name for name in given if name not in own]),
        *listed(
            "of another shape",
            [f"{n} {given[n]} (the model has {own[n]})" for n in own if n in given and given[n] != own[n]],
        ),
    )
    if problems:
        raise InputError(f"{source} does not fit the model: {'; '.join(problems)}")
    return result


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module._parameters.items() if p is not None}


def _restore(module: nn.Module, empty: dict[str, nn.Parameter]) -> None:
    module._parameters.update(empty)


def _check_values(value: Tensor, name: str, *, parameter: bool) -> None:
    """Raise InputError for NaN, and for infinities, which only buffers may hold: masks do."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        nan = bool(value.isnan().any())
        if nan or parameter:
            what = "NaN" if nan else "infinity"
            raise InputError(f"weight {name!r} holds {what}; train or convert the model again")
