"""A traced graph without operators that change a tensor in place.

Whoever computes such a graph node by node, and keeps values to compute with them again, would find them
changed: ``x += branch(x)`` is traced as ``add_``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def without_changes_in_place(graph: fx.GraphModule) -> None:
    """Give each operator that changes its first argument the place of one that does not, in place.

    What reads the changed tensor later reads the result instead. Views of it do not follow; whether the graph
    still computes the same has to be checked afterwards. Buffers that a model keeps for itself are left.
    """
    nodes = list(graph.graph.nodes)
    for position, node in enumerate(nodes):
        functional = _without_change(node)
        changed = node.args[0] if node.args else None
        if functional is None or not isinstance(changed, fx.Node) or changed.op == "get_attr":
            continue
        node.target = functional
        later = set(nodes[position + 1 :])
        changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _without_change(node: fx.Node) -> Any:
    """The operator of the same arguments that returns what ``node`` writes; None where there is none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    space, name = target._schema.name.split("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, space), name[:-1], None)
    return getattr(packet, target._overloadname, None)
