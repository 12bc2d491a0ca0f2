"""Numbers that are found to be equal, joined into classes: a union-find over tensors of numbers."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

FIXED = 0  # the class of all that must stay as it is
ANY = -1  # belongs to no class: a channel of zeros may be scaled by anything


@final
class Classes:
    """Numbers from 0 on, each its own class until it is joined with another; 0 is `FIXED`."""

    def __init__(self) -> None:
        self._parents = [FIXED]
        self._fixed = {FIXED: ""}  # root to why

    def fresh(self, count: int) -> Int[Tensor, " count"]:
        """New numbers, each a class of its own."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def join(self, one: Int[Tensor, " ..."], other: Int[Tensor, " ..."]) -> Int[Tensor, " ..."]:
        """Make equal what stands at the same place of both, broadcast; returns one number for each place."""
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]  # torch's
        first, second = _both_once(one, other)
        pairs = torch.stack([first.reshape(-1), second.reshape(-1)])
        differ = (pairs[0] != pairs[1]) & (pairs > ANY).all(0)
        for pair in torch.unique(pairs[:, differ], dim=1).T.tolist():
            self._unite(*pair)
        return torch.maximum(one, other)

    def fix(self, numbers: Int[Tensor, " ..."], reason: str = "") -> None:
        """Make them `FIXED`; the first reason given for a number, or one joined with it, stays."""
        for number in torch.unique(once(numbers)).tolist():
            if number != ANY:
                self._fixed.setdefault(self._root(number), reason)

    def reasons(self, numbers: Int[Tensor, " ..."]) -> list[str]:
        """Why those of them that are `FIXED` are, each reason once."""
        roots = (self._root(number) for number in torch.unique(once(numbers)).tolist() if number != ANY)
        return sorted({self._fixed[root] for root in roots if self._fixed.get(root)})

    def same_along(self, numbers: Int[Tensor, " ..."], axes: list[int]) -> Int[Tensor, " ..."]:
        """Make equal what differs only in its place along ``axes``; these have size 1 in what is returned."""
        numbers = once(numbers)
        kept = numbers.amax(axes, keepdim=True) if axes and numbers.numel() else numbers
        self.join(numbers, kept)
        return kept

    def free(self, numbers: Int[Tensor, " ..."]) -> bool:
        """Whether any of them is of another class than `FIXED`."""
        return bool((self.of(once(numbers)) != FIXED).any())

    def of(self, numbers: Int[Tensor, " ..."]) -> Int[Tensor, " ..."]:
        """The class of each: the smallest number in it; `FIXED` for `ANY`."""
        distinct, places = torch.unique(numbers, return_inverse=True)
        roots = [FIXED if number == ANY else self._root(number) for number in distinct.tolist()]
        classes = [FIXED if root in self._fixed else root for root in roots]
        return torch.tensor(classes, dtype=torch.int64)[places]

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def _unite(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        fixed = [root for root in (first, second) if root in self._fixed]
        if len(fixed) == 2 or first == second:
            return
        if first == FIXED:  # its members are not kept together: each keeps its reason
            self._fixed[second] = ""
            return
        self._parents[second] = first
        if fixed:
            self._fixed[first] = self._fixed[fixed[0]]


def once(numbers: Int[Tensor, " ..."]) -> Int[Tensor, " ..."]:
    """The same with size 1 along the axes that only repeat it."""
    return _both_once(numbers, numbers)[0]


def _both_once(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    for axis in range(one.dim()):
        if one.shape[axis] > 1 and one.stride(axis) == 0 and other.stride(axis) == 0:
            one, other = one.narrow(axis, 0, 1), other.narrow(axis, 0, 1)
    return one, other
