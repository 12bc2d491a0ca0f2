"""One block of a stack as a model of its own, and what it reads, batch by batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from flyweight.measure.stack import Before, Call, Route, Side
from flyweight.model import Model

PART = "block"  # what the block is called inside the model that is made of it


def block_module(block: nn.Module, call: Call, route: Route) -> nn.Module:
    """A module that takes, by name, what changes from example to example, and returns what is passed on.

    Its class is made anew: tracing wants the names of inputs in the signature of forward().
    """
    names = {place: f"read_{place}" for place, leaf in enumerate(call.leaves) if _varies(leaf, route)}
    constants = {
        place: f"constant_{place}"
        for place, leaf in enumerate(call.leaves)
        if isinstance(leaf, Side) and place not in names
    }
    outputs = route.outputs

    def forward(self: nn.Module, **inputs: Tensor) -> tuple[Tensor, ...]:
        given = {place: inputs[name] for place, name in names.items()}
        given |= {place: self.get_buffer(name) for place, name in constants.items()}
        leaves = [given.get(place, leaf) for place, leaf in enumerate(call.leaves)]
        args, kwargs = _pytree.tree_unflatten(leaves, call.spec)
        found, _ = _pytree.tree_flatten(self.get_submodule(PART)(*args, **kwargs))
        return tuple(found[place] for place in outputs)

    module = _class_with(forward, tuple(names.values()))()
    module.add_module(PART, block)
    for place, name in constants.items():
        module.register_buffer(name, route.constants[call.leaves[place].index], persistent=False)
    return module.eval()


def _class_with(forward: Callable[..., Any], names: Sequence[str]) -> type[nn.Module]:
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, either) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type("BlockCall", (nn.Module,), {"forward": forward})


def _varies(leaf: Any, route: Route) -> bool:
    return isinstance(leaf, Before) or (isinstance(leaf, Side) and leaf.index not in route.constants)


@final
class BlockInputs(Sequence[Mapping[str, Tensor]]):
    """What the module of a block takes, batch by batch, with what the model's techniques look for beside it.

    Args:
        call: Of the block.
        route: Of the stack.
        before: Outputs of the block before, batch by batch; None for the first block.
        beside: Root inputs by name, batch by batch, that are handed on: masks of tokens.
    """

    def __init__(
        self,
        call: Call,
        route: Route,
        before: Sequence[Sequence[Tensor]] | None,
        beside: Sequence[Mapping[str, Tensor]],
    ) -> None:
        self._call, self._route, self._before, self._beside = call, route, before, beside
        self._place = {output: place for place, output in enumerate(route.outputs)}

    def __len__(self) -> int:
        return len(self._route.sides)

    def __getitem__(self, index: Any) -> Any:
        sides = self._route.sides[index]
        before = () if self._before is None else self._before[index]
        found = {
            f"read_{place}": before[self._place[leaf.index]]
            if isinstance(leaf, Before)
            else sides[leaf.index]
            for place, leaf in enumerate(self._call.leaves)
            if _varies(leaf, self._route)
        }
        return {**self._beside[index], **found}

    def names(self) -> list[str]:
        """Those the module takes."""
        return [name for name in self[0] if name not in self._beside[0]]


def block_model(name: str, module: nn.Module, inputs: BlockInputs) -> Model:
    """The module as a model whose example is the first of the first batch."""
    first = inputs[0]
    return Model(name, module, {key: first[key][:1].clone() for key in inputs.names()})


@torch.no_grad()
def outputs_of(module: nn.Module, inputs: BlockInputs) -> Iterator[tuple[Tensor, ...]]:
    """What the block passes on, batch by batch."""
    names = inputs.names()
    for batch in inputs:
        # its own copies: blocks may add to what they read in place
        with torch.no_grad():
            yield module(**{name: batch[name].clone() for name in names})
