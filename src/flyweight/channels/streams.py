"""Streams of a transformer: what is added up along its depth, by which layers it is written, and read.

Source: Ashkboos et al. 2024, arXiv:2401.15024, section 3 (a stream between norms may be rotated).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

from torch import fx

Kind = Literal["rows", "embedding", "parameter"]


@final
@dataclass(frozen=True)
class Affine:
    """Weight and bias of a norm, by name, that whoever reads its output has to take over; None is none."""

    weight: str | None = None
    bias: str | None = None


PLAIN = Affine()


@final
@dataclass(frozen=True)
class Value:
    """A value that lies in a stream.

    Attributes:
        stream: Its number.
        axis: Of the channels, counted from the end: below 0.
        affine: Of the norm it comes from, if a norm's weights lie between the stream and it.
        squared: It is the square of a value of the stream, good for sums over channels alone.
    """

    stream: int
    axis: int
    affine: Affine = PLAIN
    squared: bool = False


@final
@dataclass(eq=False)
class Stream:
    """All that is known of a stream, as it is found.

    Attributes:
        width: Channels.
        writers: Layer or parameter to what of it writes; of a parameter, the last axis.
        readers: Layer to the norm between stream and layer.
        exits: Nodes that must get it as it was before it was rotated: (node, what it reads, norm between).
        norms: All whose weights readers take over.
        sums: How often the output of one layer was added to that of others.
        keeps_mean: Something subtracts the mean over channels, or adds the same to all.
        obstacles: Why it cannot be rotated, in the order in which they were met.
    """

    width: int
    writers: dict[str, Kind] = field(default_factory=dict)
    readers: dict[str, Affine] = field(default_factory=dict)
    exits: list[tuple[fx.Node, fx.Node, Affine]] = field(default_factory=list)
    norms: set[Affine] = field(default_factory=set)
    sums: int = 0
    keeps_mean: bool = False
    obstacles: list[str] = field(default_factory=list)

    @property
    def layers(self) -> set[str]:
        """All layers that a rotation changes."""
        return {name for name, kind in self.writers.items() if kind != "parameter"} | set(self.readers)

    @property
    def is_residual(self) -> bool:
        """Whether outputs of layers are added up in it, and layers read it."""
        return self.sums > 0 and bool(self.readers)

    def take_in(self, other: Stream) -> None:
        """Become one with another, in place."""
        self.writers |= other.writers
        self.exits += other.exits
        self.norms |= other.norms
        self.sums += other.sums
        self.keeps_mean |= other.keeps_mean
        self.obstacles += other.obstacles
        for name, affine in other.readers.items():
            self.add_reader(name, affine)

    def add_reader(self, name: str, affine: Affine) -> None:
        """One more layer that reads it."""
        if self.readers.setdefault(name, affine) != affine:
            self.obstacles.append(f"layer {name!r} is called twice, behind two norms")


@final
class Streams:
    """The streams of a graph, of which several become one as sums are found."""

    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self._parents: list[int] = []
        self._written: dict[str, list[int | None]] = {}
        self._read: dict[str, list[int | None]] = {}

    def start(self, width: int, writer: str, kind: Kind) -> int:
        """The number of a new stream."""
        number = len(self._streams)
        self._streams.append(Stream(width, {writer: kind}))
        self._parents.append(number)
        self._written.setdefault(writer, []).append(number)
        return number

    def note_read(self, layer: str, read: Value | None) -> None:
        """One more call of a layer, and what it reads; None for what is in no stream."""
        self._read.setdefault(layer, []).append(None if read is None else read.stream)

    def of(self, value: Value) -> Stream:
        """The stream a value lies in."""
        return self._streams[self._number(value.stream)]

    def join(self, one: Value, other: Value) -> bool:
        """Make one stream of two; False where their channels differ in number or place."""
        first, second = self._number(one.stream), self._number(other.stream)
        kept, merged = self._streams[first], self._streams[second]
        if kept.width != merged.width or one.axis != other.axis:
            return False
        if first != second:
            by_layers = all(set(s.writers.values()) != {"parameter"} for s in (kept, merged))
            kept.take_in(merged)
            kept.sums += by_layers
            self._parents[second] = first
        return True

    def found(self) -> list[Stream]:
        """All there are."""
        return [s for number, s in enumerate(self._streams) if self._parents[number] == number]

    def check_calls(self) -> None:
        """What a layer reads, or writes, in two calls must be the same stream: all else is an obstacle."""
        for verb, calls in (("writes", self._written), ("reads", self._read)):
            for name, numbers in calls.items():
                if len({None if n is None else self._number(n) for n in numbers}) > 1:
                    for number in numbers:
                        if number is not None:
                            why = f"{name!r}, which {verb} something else too,"
                            self._streams[self._number(number)].obstacles.append(why)

    def _number(self, stream: int) -> int:
        while self._parents[stream] != stream:
            stream = self._parents[stream]
        return stream
