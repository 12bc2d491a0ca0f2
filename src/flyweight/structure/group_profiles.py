"""What can be removed from a model, as its profile tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import fx, nn

from flyweight.core.layer import GroupMember, GroupProfile, LayerProfile, ModelProfile
from flyweight.measure.graph import capture
from flyweight.model import Model
from flyweight.structure.dependencies import Group, Member, dependencies, groups


def with_groups(profile: ModelProfile, model: Model) -> ModelProfile:
    """``profile`` of ``model`` with its groups, but for those that none of its layers writes.

    Raises:
        UnsupportedError: The model cannot be traced.
    """
    graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
    return replace(profile, groups=group_profiles(profile, graph, groups(dependencies(graph, model))))


def group_profiles(
    profile: ModelProfile, graph: fx.GraphModule, found: Sequence[Group]
) -> tuple[GroupProfile, ...]:
    """The groups of a graph that layers of the profile write, named by the first of them."""
    owners = _owners(profile, graph)
    several = (_profile_of(group, owners, profile, graph) for group in found)
    named: dict[str, int] = {}
    result = []
    for group in several:
        if group.writers:
            again = named[group.name] = named.get(group.name, 0) + 1
            result.append(group if again == 1 else replace(group, name=f"{group.name}:{again}"))
    return tuple(result)


def _owners(profile: ModelProfile, graph: fx.GraphModule) -> Mapping[int, list[str]]:
    """Weight to the layers that multiply with it."""
    found: dict[int, list[str]] = {}
    for layer in profile.layers:
        found.setdefault(id(graph.get_submodule(layer.name).weight), []).append(layer.name)
    return found


def _profile_of(
    group: Group, owners: Mapping[int, list[str]], profile: ModelProfile, graph: fx.GraphModule
) -> GroupProfile:
    members: dict[str, GroupMember] = {}
    writers: dict[str, None] = {}
    other = 0
    for member in group.members:
        tensor = _tensor(graph, member.tensor)
        names = owners.get(id(tensor), [])
        for name in names:
            before = members.get(name, GroupMember(layer=name))
            layer = graph.get_submodule(name)
            members[name] = _added(before, _taken(layer, profile.by_name[name], member))
            if _writes(layer, member):
                writers[name] = None
        if not names and isinstance(tensor, nn.Parameter):
            other += member.index.shape[1] * tensor.numel() // tensor.shape[member.axis]
    first = next(iter(sorted(writers, key=list(profile.by_name).index)), "")
    ordered = tuple(name for name in profile.by_name if name in writers)
    return GroupProfile(
        name=first,
        parts=len(group),
        writers=ordered,
        members=tuple(members.values()),
        other_numbers=other,
    )


def _tensor(graph: fx.GraphModule, name: str) -> object:
    path, _, attribute = name.rpartition(".")
    return getattr(graph.get_submodule(path), attribute)


def _writes(layer: nn.Module, member: Member) -> bool:
    """Whether the layer puts out what lies on the axis: of a tied head, an embedding's axis is read."""
    return member.axis == (1 if isinstance(layer, nn.Embedding) else 0)


def _taken(layer: nn.Module, profile: LayerProfile, member: Member) -> GroupMember:
    """What one part takes of a layer along one axis of its weight."""
    places = member.index.shape[1]
    if isinstance(layer, nn.Embedding):
        width = profile.columns
        outputs = profile.output_elements // width * places
        return GroupMember(layer=profile.name, columns=places, output_elements=outputs)
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    channels = layer.in_channels if isinstance(layer, nn.Conv1d | nn.Conv2d) else profile.columns
    a_channel = profile.input_elements // channels
    if member.axis == 1:
        kernel = profile.columns // (channels // groups)
        return GroupMember(
            layer=profile.name, columns=places * kernel, input_elements=a_channel * places * groups
        )
    each_group = channels == groups and groups > 1  # the part's channels are read here, and nowhere else
    return GroupMember(
        layer=profile.name,
        rows=places,
        output_elements=profile.output_elements // profile.rows * places,
        input_elements=a_channel * places * groups // profile.rows if each_group else 0,
    )


def _added(one: GroupMember, other: GroupMember) -> GroupMember:
    return GroupMember(
        layer=one.layer,
        rows=one.rows + other.rows,
        columns=one.columns + other.columns,
        input_elements=one.input_elements + other.input_elements,
        output_elements=one.output_elements + other.output_elements,
    )


def written_groups(profile: ModelProfile, layers: Sequence[str]) -> Iterator[GroupProfile]:
    """The groups that the layers write, and nobody else does.

    Raises:
        ValueError: Others write a group too.
    """
    named = set(layers)
    for group in profile.groups:
        missing = [name for name in group.writers if name not in named]
        if len(missing) == len(group.writers):
            continue
        if missing:
            some = next(name for name in group.writers if name in named)
            raise ValueError(
                f"layer {some!r} shrinks together with {', '.join(map(repr, missing))}: name them too"
            )
        yield group
