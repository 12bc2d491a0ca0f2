"""What the planner knows of a model: one record for each weighted layer, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

Operation = Literal["linear", "conv1d", "conv2d", "embedding"]
FloatFormat = Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
Encoding = Literal[
    "float32", FloatFormat, "affine", "binary", "ternary", "normal_float", "codebook", "vector"
]
FLOAT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class CodebookProfile:
    """The lookup tables that the codes of one layer point into.

    Attributes:
        entries: Of one table.
        tables: Stored with the layer; 0 where the form itself defines the table, as normal floats do.
        dimension: Neighbouring columns of a row that one code stands for.
    """

    entries: int
    tables: int = 1
    dimension: int = 1


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """One weighted layer, its weight seen as a matrix.

    Attributes:
        name: Qualified module name, ``"blocks.3.fc1"``.
        op: What kind of layer it is.
        rows: Output channels (an embedding: entries).
        columns: Inputs of one output channel, in * kernel height * kernel width (an embedding: its width).
        macs: Multiply-accumulates of one forward pass at batch 1.
        input_elements: Activation elements read, batch 1.
        output_elements: Activation elements written, batch 1.
        weight_bits: Mean stored bits of a kept weight, scales and indices included.
        density: Fraction of weights kept, in (0, 1].
        encoding: The stored form; ``"float32"`` also for forms that are not listed, which exporters write
            decoded.
        code_bits: Bits of one integer code where the weight is affine, else None; after lowering, of whatever
            code or float the file stores.
        group_size: Columns that share one scale; None where no scale is stored, or one serves the whole
            weight.
        codebook: Lookup tables of normal floats, codebooks and vectors, else None.
        activation_bits: Bits of one element of the input as it is multiplied.
        activation_mode: ``"float"``, ``"static"`` (ranges fixed by calibration) or ``"dynamic"`` (ranges
            found at run time).
        activation_granularity: What has a range of its own where ranges are found at run time.
        tied_to: Name of the earlier layer that owns the same weight, else None; it is then stored once.
    """

    name: str
    op: Operation
    rows: int
    columns: int
    macs: int
    input_elements: int
    output_elements: int
    weight_bits: float = float(FLOAT_BITS)
    density: float = 1.0
    encoding: Encoding = "float32"
    code_bits: int | None = None
    group_size: int | None = None
    codebook: CodebookProfile | None = None
    activation_bits: int = FLOAT_BITS
    activation_mode: Literal["float", "static", "dynamic"] = "float"
    activation_granularity: Literal["tensor", "token"] = "tensor"
    tied_to: str | None = None

    @property
    def weights(self) -> int:
        """Number of weights, kept or not."""
        return self.rows * self.columns

    @property
    def kept(self) -> int | None:
        """Number of weights kept; None where all are."""
        return None if self.density >= 1 else round(self.weights * self.density)

    @property
    def storage_bytes(self) -> float:
        """Bytes of the stored weight; 0 where an earlier layer owns it."""
        return 0.0 if self.tied_to else self.weights * self.density * self.weight_bits / 8


@dataclass(frozen=True, kw_only=True)
class FloatModule:
    """A module with weights that no technique takes; its bytes are among the other bytes of its profile.

    Attributes:
        name: Qualified module name.
        kind: Its class, ``"LSTM"``.
        weights: Numbers in its own parameters, biases included.
        macs: Multiply-accumulates of one forward pass at batch 1.
    """

    name: str
    kind: str
    weights: int
    macs: int

    @property
    def storage_bytes(self) -> float:
        """Stored size."""
        return self.weights * FLOAT_BITS / 8


@dataclass(frozen=True, kw_only=True)
class GroupMember:
    """What one part of a group takes of a layer.

    Attributes:
        layer: Its name.
        rows: Of the weight.
        columns: Likewise.
        input_elements: Activation elements read, batch 1.
        output_elements: Activation elements written, batch 1.
    """

    layer: str
    rows: int = 0
    columns: int = 0
    input_elements: int = 0
    output_elements: int = 0


@dataclass(frozen=True, kw_only=True)
class GroupProfile:
    """Parts that can be removed: channels, heads, neurons; each from all members at once.

    Attributes:
        name: Of the first layer that writes them.
        parts: How many there are.
        writers: Layers that write them.
        members: What one part takes of every layer.
        other_numbers: Likewise of biases, norms and the like.
    """

    name: str
    parts: int
    writers: tuple[str, ...]
    members: tuple[GroupMember, ...]
    other_numbers: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelProfile:
    """All weighted layers of one model in execution order.

    Attributes:
        model: Name of the model.
        layers: In the order in which they run.
        other_bytes: What is stored outside those layers: biases, norms, smoothing factors, float modules.
        float_modules: Of those parameters, what holds whole weights.
        container_bytes: What the file format adds: graph, names, metadata; 0 before lowering.
        unused: Layers whose output nothing uses: no file holds them, and they are counted nowhere.
        groups: What can be removed, where that was looked for.
    """

    model: str
    layers: tuple[LayerProfile, ...]
    float_modules: tuple[FloatModule, ...] = ()
    other_bytes: float = 0.0
    container_bytes: float = 0.0
    unused: tuple[str, ...] = ()
    groups: tuple[GroupProfile, ...] = ()

    def __post_init__(self) -> None:
        if len(self.by_name) != len(self.layers):
            raise ValueError(f"profile of {self.model!r} holds two layers of the same name")

    @cached_property
    def by_name(self) -> Mapping[str, LayerProfile]:
        """Layer name to its record."""
        return {layer.name: layer for layer in self.layers}

    @property
    def storage_bytes(self) -> float:
        """Bytes of everything stored."""
        return sum(layer.storage_bytes for layer in self.layers) + self.other_bytes + self.container_bytes

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass at batch 1."""
        return sum(layer.macs for layer in self.layers) + sum(m.macs for m in self.float_modules)

    def with_layer(self, layer: LayerProfile) -> ModelProfile:
        """A copy in which the layer of that name is replaced.

        Raises:
            KeyError: No layer has that name.
        """
        if layer.name not in self.by_name:
            raise KeyError(f"no layer {layer.name!r} in the profile of {self.model!r}")
        return replace(self, layers=tuple(layer if old.name == layer.name else old for old in self.layers))
