"""What of a network's tensors can only be removed together.

Every channel that a layer writes has a number, and numbers flow through the graph beside the values: a sum
joins what it adds, a layer takes them up along the axis of its weight that reads them, a head is one part
because its channels are multiplied with each other. What an operator that is not understood reads stays, and
it is known why.

Source: Fang et al. 2023, arXiv:2301.12900 (DepGraph: what is coupled is found on the graph).
Differs: numbers are followed entry by entry, through views, splits and concatenations, so that each tensor
knows which of its indices belong to a part, and operators that only move values need no rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor, fx

from flyweight.channels.classes import FIXED
from flyweight.measure.calibrate import in_graph_order
from flyweight.model import Model
from flyweight.structure.rules import Role, Tracer

Axis = tuple[str, int]  # of a parameter or buffer, by name


@final
@dataclass(frozen=True, eq=False)
class Dependencies:
    """What `dependencies` found; all numbers are classes, `FIXED` for what stays.

    Attributes:
        axes: The class of each index along an axis of a parameter or buffer.
        values: Node to the class of each entry of what it computes, broadcast along axes of size 1.
        reasons: Why something along an axis stays, where it is known.
        roles: Of the axes of weights, whether parts are written there or read; the others follow.
    """

    axes: Mapping[Axis, Int[Tensor, " size"]]
    values: Mapping[fx.Node, Any]
    reasons: Mapping[Axis, Sequence[str]]
    roles: Mapping[Axis, Role]


@torch.no_grad()
def dependencies(graph: fx.GraphModule, model: Model) -> Dependencies:
    """The parts of all parameters and buffers of a graph.

    Args:
        graph: From `flyweight.measure.graph.capture`.
        model: Its example inputs are run.
    """
    tracer = Tracer(graph)
    tracer.run(*in_graph_order(graph, model.example_inputs))
    tracer.square()
    of = tracer.classes.of
    return Dependencies(
        axes={key: of(numbers) for key, numbers in tracer.axes.items()},
        values={node: _classes(numbers, of) for node, numbers in tracer.values.items()},
        reasons={key: tracer.classes.reasons(numbers) for key, numbers in tracer.axes.items()},
        roles=dict(tracer.roles),
    )


def _classes(numbers: Any, of: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(numbers, tuple | list):
        return tuple(_classes(each, of) for each in numbers)
    return None if numbers is None else of(numbers)


@final
@dataclass(frozen=True, eq=False)
class Member:
    """An axis of a parameter or buffer on which a group's parts lie.

    Attributes:
        tensor: Its name.
        axis: Of it.
        role: Whether a weight writes parts there, or reads them; biases, norms and the like follow.
        index: Where each part lies.
    """

    tensor: str
    axis: int
    role: Role
    index: Int[Tensor, "parts places"]


@final
@dataclass(frozen=True, eq=False)
class Group:
    """Parts alike: each can be removed from all members, whatever becomes of the others.

    Attributes:
        name: Of the first tensor it has.
        classes: Of each part.
        members: All that shrinks with it.
    """

    name: str
    classes: tuple[int, ...]
    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.classes)


def groups(found: Dependencies) -> list[Group]:
    """Parts that lie on the same axes, as often, are of one group; a part alone in its group is left out."""
    places: dict[int, dict[Axis, list[int]]] = {}
    for key, classes in found.axes.items():
        for index, part in enumerate(classes.tolist()):
            if part != FIXED:
                places.setdefault(part, {}).setdefault(key, []).append(index)
    alike: dict[tuple[tuple[Axis, int], ...], list[int]] = {}
    for part, members in places.items():
        alike.setdefault(tuple((key, len(own)) for key, own in sorted(members.items())), []).append(part)
    return list(_grouped(alike.values(), places, found.roles))


def _grouped(
    alike: Iterable[Sequence[int]],
    places: Mapping[int, Mapping[Axis, list[int]]],
    roles: Mapping[Axis, Role],
) -> Iterator[Group]:
    for parts in alike:
        if len(parts) < 2:
            continue
        keys = list(places[parts[0]])
        members = tuple(
            Member(*key, roles.get(key, "follows"), torch.tensor([places[part][key] for part in parts]))
            for key in keys
        )
        yield Group(keys[0][0], tuple(parts), members)


def kept_places(classes: Int[Tensor, " size"], removed: set[int]) -> Int[Tensor, " kept"]:
    """The indices along an axis that stay."""
    gone = torch.tensor(sorted(removed), dtype=torch.int64)
    return (~torch.isin(classes, gone)).nonzero()[:, 0]
