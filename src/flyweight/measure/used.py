"""Which layers reach an output of the model, found while it runs.

Every tensor is followed by the layers that it was computed from. Where values leave what can be followed, as
for Python numbers, all layers that they may come from count as used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flyweight.model import Model


@final
class Reach(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no annotations
    """A context in which the model runs once, with `wrote` called after each layer."""

    def __init__(self, model: Model) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ran: set[str] = set()
        self._used: set[str] = set()
        # A weak reference keeps the key from being given to other memory, but not the memory.
        self._known: dict[int, StorageWeakRef] = {}
        self._sources: dict[int, frozenset[str]] = {}
        module = model.module
        for tensor in (*module.parameters(), *module.buffers(), *model.example_inputs.values()):
            self._add(tensor, frozenset())

    def wrote(self, name: str, output: Tensor) -> None:
        """Tell that a layer put out ``output``."""
        self._ran.add(name)
        self._add(output, frozenset({name}))

    def used(self, outputs: Sequence[Tensor]) -> frozenset[str]:
        """The layers that reach the outputs."""
        return frozenset(self._used) | self._behind(outputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        result = func(*args, **named)
        read, written = _tensors((args, named)), _tensors(result)
        behind = self._behind(read)
        if not written:
            self._used |= behind
        for tensor in (*written, *read) if func._schema.is_mutable else written:
            self._add(tensor, behind)
        return result

    def _behind(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        """The layers that the tensors were computed from; of one from elsewhere, all that ran may be."""
        places = [_place(tensor) for tensor in tensors]
        if any(place not in self._known for place in places):
            self._used |= self._ran
        return frozenset().union(*(self._sources.get(place, frozenset()) for place in places))

    def _add(self, tensor: Tensor, behind: frozenset[str]) -> None:
        place = _place(tensor)
        if place not in self._known:
            self._known[place] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._sources[place] = self._sources.get(place, frozenset()) | behind


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    """The same for all views of one memory."""
    return int(tensor.untyped_storage()._cdata)
