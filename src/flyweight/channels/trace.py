"""Which channels of a graph's values must be scaled by the same factor, so that the graph computes the same.

Every output channel of a layer, and every entry of a parameter, has a number: that of the factor its values
are multiplied by. Numbers flow through the graph beside the values. What is homogeneous (relu, pooling,
moves) hands them on, a sum joins what it adds, a layer takes them up in its columns, and what is not
understood fixes them. So nothing is refused here: what is left is what is free.

Limits: of a product of two free values, one is fixed; queries and keys are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Int
from torch import Tensor, fx

from flyweight.channels.classes import FIXED, Classes
from flyweight.channels.rules import Tracer
from flyweight.measure.calibrate import in_graph_order
from flyweight.model import Model


@final
@dataclass(frozen=True, eq=False)
class Side:
    """Channels of a weight or parameter that share factors with others.

    Attributes:
        name: Of the layer, or of the parameter.
        kind: ``rows`` of a layer, which write; ``columns`` of a layer, which read; a ``parameter``.
        classes: (channels,), the class of each; `FIXED` where it must stay.
        reads: Nodes whose values the columns read; () for the others.
    """

    name: str
    kind: Literal["rows", "columns", "parameter"]
    classes: Int[Tensor, " channels"]
    reads: tuple[fx.Node, ...] = ()


@final
@dataclass(frozen=True, eq=False)
class Channels:
    """What `trace` found.

    Attributes:
        sides: All that can be scaled.
        clamps: Node of a clamp from 0 on, and the classes of its values, where they are not fixed.
    """

    sides: tuple[Side, ...]
    clamps: Mapping[fx.Node, Int[Tensor, " ..."]]

    def count(self) -> int:
        """Classes are below it."""
        return 1 + max((int(side.classes.max()) for side in self.sides), default=0)

    def groups(self) -> list[tuple[Side, ...]]:
        """Sides that have a class in common, directly or through others; those with none are left out."""
        parents = Classes()
        first: dict[int, Tensor] = {}
        numbers = {side: parents.fresh(1) for side in self.sides}
        for side in self.sides:
            for found in torch.unique(side.classes[side.classes != FIXED]).tolist():
                parents.join(numbers[side], first.setdefault(found, numbers[side]))
        grouped: dict[int, list[Side]] = {}
        for side in self.sides:
            if bool((side.classes != FIXED).any()):
                grouped.setdefault(int(parents.of(numbers[side])), []).append(side)
        return [tuple(group) for group in grouped.values()]


@torch.no_grad()
def trace(
    graph: fx.GraphModule,
    model: Model,
    layers: Collection[str],
    *,
    sums: bool = True,
    clamps: bool = False,
) -> Channels:
    """The channels of the graph that may be scaled.

    Args:
        graph: From `flyweight.measure.graph.capture`.
        model: Its example inputs are run.
        layers: Names of linear layers and convolutions whose weights may change.
        sums: Channels that are added are scaled together; else they stay.
        clamps: A clamp from 0 to a number hands factors on: its bound must then be scaled.
    """
    tracer = Tracer(graph, layers, sums=sums, clamps=clamps)
    tracer.run(*in_graph_order(graph, model.example_inputs))
    of = tracer.classes.of
    sides = [Side(name, "rows", of(numbers)) for name, numbers in tracer.rows.items()]
    sides += [
        Side(name, "columns", of(numbers), tuple(tracer.reads[name]))
        for name, numbers in tracer.columns.items()
    ]
    sides += [Side(name, "parameter", of(numbers)) for name, numbers in tracer.parameters.items()]
    bounds = {node: of(numbers) for node, numbers in tracer.clamped.items()}
    free = {node: classes for node, classes in bounds.items() if bool((classes != FIXED).any())}
    return Channels(tuple(sides), free)
