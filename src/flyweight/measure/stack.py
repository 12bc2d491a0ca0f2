"""The stack of blocks in a model, and what each block is called with, found without running the blocks.

The model's own forward() is run with every block but the first replaced by a stand-in that puts out the
first one's outputs. What a block reads is then the output of the block before (the same tensor object), or
something that does not depend on blocks at all: a mask, positions, what the first block reads.

Limits: blocks run one after the other, each once, and nothing is computed between. Inputs have one length.
A weight outside of the blocks is read by its own layer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.walk import Batches, Keep

LITERALS = (type(None), bool, int, float, str, torch.dtype, torch.device)
SHORTEST = 2  # blocks: what passes from one to the next is seen at the second


@final
@dataclass(frozen=True)
class Before:
    """An output tensor of the block before."""

    index: int


@final
@dataclass(frozen=True)
class Side:
    """A tensor that no block computed."""

    index: int


@final
@dataclass(frozen=True)
class Call:
    """Arguments of a block; each leaf is a `Before`, a `Side`, or the value itself."""

    leaves: tuple[Any, ...]
    spec: Any


@final
@dataclass(frozen=True, eq=False)
class Route:
    """What passes through the stack.

    Attributes:
        calls: Of each block.
        outputs: Places of the tensors that the next block reads, among the leaves of what a block returns.
        constants: Sides that are the same whatever the examples, by index.
        sides: The others, batch by batch: index to (batch, ...).
    """

    calls: tuple[Call, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Tensor]
    sides: Sequence[Mapping[int, Tensor]]


def find_stack(module: nn.Module, name: str | None = None) -> tuple[str, ...]:
    """Paths of the blocks: the members of the list ``name``, or of that with the most weights.

    Raises:
        InputError: There is no such list, or none at all.
    """
    lists = {path: m for path, m in module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)}
    stacks = {path: m for path, m in lists.items() if _is_stack(m)}
    if name is not None:
        if name not in stacks:
            known = ", ".join(map(repr, stacks)) or "none"
            raise InputError(f"{name!r} is no list of blocks of one class; the model has {known}")
        return _paths(name, stacks[name])
    if not stacks:
        raise InputError(
            "the model has no list of blocks (nn.ModuleList or nn.Sequential of at least two modules of one "
            "class): a model without one is compressed as a whole, with compress"
        )
    best = max(stacks, key=lambda path: sum(p.numel() for p in stacks[path].parameters()))
    return _paths(best, stacks[best])


def _is_stack(blocks: nn.ModuleList | nn.Sequential) -> bool:
    members = list(blocks)
    alike = len({type(m) for m in members}) == 1 and len(set(map(id, members))) == len(members)
    return len(members) >= SHORTEST and alike and all(any(True for _ in m.parameters()) for m in members)


def _paths(name: str, blocks: nn.ModuleList | nn.Sequential) -> tuple[str, ...]:
    return tuple(".".join(filter(None, (name, child))) for child, _ in blocks.named_children())


@contextmanager
def forwards(module: nn.Module, replacements: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, the parts at these paths compute with other functions."""
    parts = [module.get_submodule(path) for path in replacements]
    own = [vars(part).get("forward") for part in parts]
    try:
        for part, function in zip(parts, replacements.values(), strict=True):
            part.forward = function
        yield
    finally:
        for part, before in zip(parts, own, strict=True):
            if before is None:
                vars(part).pop("forward", None)
            else:
                part.forward = before


def route(
    module: nn.Module, blocks: Sequence[str], first: nn.Module, batches: Batches, *, keep: Keep
) -> Route:
    """How calibration batches pass through the stack.

    Args:
        module: All of it that runs before the last block has its weights, but for the blocks; none of them
            asks for gradients, which tell here what depends on blocks.
        blocks: Paths of the blocks.
        first: A copy of the first block, with its weights.
        batches: At least one; root inputs by name.
        keep: For the values that go past the blocks.

    Raises:
        InputError: The model does not take these inputs.
        UnsupportedError: The blocks are no chain.
    """
    one = {name: value[:1] for name, value in batches[0].items()}
    two = {name: torch.cat([value, value]) for name, value in one.items()}
    alone = _recorded(module, blocks, first, one, gradients=True)
    double = _recorded(module, blocks, first, two)
    batched = _batched(alone, double)
    outputs = _passed_on(alone)
    constants = {i: side for i, side in enumerate(alone.sides) if i not in batched}

    def sides() -> Iterator[Mapping[int, Tensor]]:
        for batch in batches:
            recorded = _recorded(module, blocks, first, batch)
            _check_alike(recorded, alone, constants)
            yield {i: recorded.sides[i] for i in sorted(batched)}

    return Route(tuple(alone.calls), outputs, constants, keep(sides()))


class _Reached(Exception):
    """The last block was called: nothing after it matters."""


@final
class _Recorder:
    """Stands in for the blocks, and writes down what they are called with."""

    def __init__(self, blocks: Sequence[str], first: nn.Module, *, gradients: bool) -> None:
        self._blocks, self._first, self._gradients = blocks, first, gradients
        self._returned: Any = None
        self._outputs: list[list[Any]] = []  # leaves of what each stand-in returned
        self._versions: list[list[int]] = []
        self.calls: list[Call] = []
        self.sides: list[Tensor] = []

    def stand_in(self, index: int) -> Callable[..., Any]:
        """What computes in place of a block."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            if index != len(self.calls):
                raise UnsupportedError(
                    f"block {self._blocks[index]!r} is called as number {len(self.calls) + 1}: blocks must "
                    "run one after the other, each once; name another list of blocks (--stack)"
                )
            leaves, spec = _pytree.tree_flatten((args, kwargs))
            self.calls.append(Call(tuple(self._source(leaf, index) for leaf in leaves), spec))
            if index == 0:
                with torch.no_grad():
                    self._returned = self._first(*args, **kwargs)
            if index == len(self._blocks) - 1:
                raise _Reached
            return self._stand_in_outputs()

        return forward

    def _stand_in_outputs(self) -> Any:
        leaves, spec = _pytree.tree_flatten(self._returned)
        fresh = [self._fresh(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._outputs.append(fresh)
        self._versions.append([leaf._version if isinstance(leaf, Tensor) else 0 for leaf in fresh])
        return _pytree.tree_unflatten(fresh, spec)

    def _fresh(self, tensor: Tensor) -> Tensor:
        own = tensor.detach().clone()
        if self._gradients and own.is_floating_point():
            return own.requires_grad_() * 1  # no leaf: the model may change it in place
        return own

    def _source(self, leaf: Any, index: int) -> Any:
        where = f"block {self._blocks[index]!r}"
        if not isinstance(leaf, Tensor):
            if not isinstance(leaf, LITERALS):
                raise UnsupportedError(
                    f"{where} is called with a value of type {type(leaf).__name__}, no tensor: switch "
                    "it off where the model is made (a cache of keys and values by use_cache=False)"
                )
            return leaf
        for block, outputs in reversed(list(enumerate(self._outputs))):
            found = next((i for i, output in enumerate(outputs) if output is leaf), None)
            if found is not None and block < index - 1:
                raise UnsupportedError(
                    f"{where} reads the output of {self._blocks[block]!r} too, which is not the one before"
                )
            if found is not None and self._versions[block][found] == leaf._version:
                return Before(found)
            if found is not None:
                raise UnsupportedError(f"what {where} reads is changed between the blocks")
        if leaf.requires_grad:
            raise UnsupportedError(f"what {where} reads is computed from outputs of blocks, between them")
        place = next((i for i, side in enumerate(self.sides) if side is leaf), None)
        if place is None:
            place = len(self.sides)
            self.sides.append(leaf)
        return Side(place)

    def output_sizes(self, places: Sequence[int]) -> list[int]:
        """First axes of outputs of the first block."""
        leaves, _ = _pytree.tree_flatten(self._returned)
        return [len(leaves[place]) for place in places]


def _recorded(
    module: nn.Module,
    blocks: Sequence[str],
    first: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    gradients: bool = False,
) -> _Recorder:
    recorder = _Recorder(blocks, first, gradients=gradients)
    stand_ins = {path: recorder.stand_in(index) for index, path in enumerate(blocks)}
    try:
        with forwards(module, stand_ins), torch.set_grad_enabled(gradients):
            module(**batch)
    except _Reached:
        return recorder
    except (TypeError, IndexError, RuntimeError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"the model does not run on the calibration data: {type(error).__name__}: {text}"
        ) from error
    raise UnsupportedError(
        f"only {len(recorder.calls)} of {len(blocks)} blocks are called: name another list (--stack)"
    )


def _passed_on(recorded: _Recorder) -> tuple[int, ...]:
    """Places of the outputs that the next block reads."""
    leaves = (leaf for call in recorded.calls for leaf in call.leaves)
    return tuple(sorted({leaf.index for leaf in leaves if isinstance(leaf, Before)}))


def _batched(alone: _Recorder, double: _Recorder) -> frozenset[int]:
    """Sides whose first axis is that of the examples."""
    if alone.calls != double.calls:
        raise UnsupportedError("what the blocks are called with depends on the number of examples")
    outputs = _passed_on(alone)
    if not outputs or any(size != 1 for size in alone.output_sizes(outputs)):
        raise UnsupportedError("blocks must pass on tensors whose first axis is that of the examples")
    found = set()
    for index, (one, two) in enumerate(zip(alone.sides, double.sides, strict=True)):
        if one.shape == two.shape:
            continue
        if one.shape[0] != 1 or two.shape != (2, *one.shape[1:]):
            raise UnsupportedError(
                f"the blocks read a tensor of shape {tuple(one.shape)} that is {tuple(two.shape)} for two "
                "examples: the first axis must be that of the examples"
            )
        found.add(index)
    return frozenset(found)


def _check_alike(recorded: _Recorder, alone: _Recorder, constants: Mapping[int, Tensor]) -> None:
    if recorded.calls != alone.calls:
        raise UnsupportedError("what the blocks are called with differs from batch to batch")
    for index, constant in constants.items():
        if not torch.equal(recorded.sides[index], constant):
            raise UnsupportedError(
                f"a tensor of shape {tuple(constant.shape)} that blocks read has no axis of examples, and "
                "differs from batch to batch"
            )
