"""What a profile becomes when parts of its groups are removed; no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flyweight.core.layer import FLOAT_BITS, GroupMember, LayerProfile, ModelProfile


def without_parts(profile: ModelProfile, removed: Mapping[str, int]) -> ModelProfile:
    """``profile`` after so many parts were removed from groups, by their names.

    Bytes of float modules are not followed, nor is what was stored encoded: structure goes first.

    Raises:
        KeyError: No group has that name.
        ValueError: Less than no part is removed from a group, or all are.
    """
    known = {group.name: group for group in profile.groups}
    layers, other = dict(profile.by_name), 0
    for name, count in removed.items():
        group = known[name]
        if not 0 <= count < group.parts:
            raise ValueError(f"of the {group.parts} parts of {name!r}, {count} cannot be removed")
        for member in group.members:
            layers[member.layer] = _without(layers[member.layer], member, count)
        other += count * group.other_numbers
    groups = tuple(replace(g, parts=g.parts - removed.get(g.name, 0)) for g in profile.groups)
    return replace(
        profile,
        layers=tuple(layers.values()),
        other_bytes=profile.other_bytes - other * FLOAT_BITS / 8,
        groups=groups,
    )


def _without(layer: LayerProfile, member: GroupMember, count: int) -> LayerProfile:
    rows, columns = layer.rows - count * member.rows, layer.columns - count * member.columns
    return replace(
        layer,
        rows=rows,
        columns=columns,
        macs=layer.macs // (layer.rows * layer.columns) * rows * columns,
        input_elements=layer.input_elements - count * member.input_elements,
        output_elements=layer.output_elements - count * member.output_elements,
    )
