"""What static techniques share: values of a captured graph, rounded on grids that calibration fixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.activation_ranges import activation_range, code_parameters
from flyweight.measure.calibrate import observe
from flyweight.measure.graph import capture, module_of
from flyweight.model import Model
from flyweight.techniques._adaptive_inputs import Grids, adaptive_grids
from flyweight.techniques._placement import Placement, insert, layer_called
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.encoded import EncodedLayer
from flyweight.tensors.ranges import RangeMethod

LARGEST_BIAS_CODE = 2.0**30  # half of int32: the rest is for the products
LEAST_STEP = 2.0**-120  # of the sums, input scale times weight scale: still a normal float


def traced(model: Model, batches: Sequence[Mapping[str, Tensor]], technique: str) -> fx.GraphModule:
    """The model as a graph; itself where it is one.

    Raises:
        InputError: There are no calibration batches.
        UnsupportedError: The model cannot be traced.
    """
    if not batches:
        raise InputError(f"{technique} needs calibration data to find the ranges of activations: give --data")
    return model.module if isinstance(model.module, fx.GraphModule) else capture(model)


@final
@dataclass(frozen=True, eq=False)
class Calls:
    """The calls of some layers in a graph, embeddings included.

    Attributes:
        graph: Of the model.
        nodes: The calls, in its order.
    """

    graph: fx.GraphModule
    nodes: tuple[fx.Node, ...]

    @property
    def multiplying(self) -> list[str]:
        """Names of the layers that multiply what they read, one a call."""
        return [
            str(n.target) for n in self.nodes if not isinstance(layer_called(self.graph, n), nn.Embedding)
        ]

    @property
    def once(self) -> frozenset[str]:
        """Names of the layers that are called once."""
        counts = Counter(str(n.target) for n in self.nodes)
        return frozenset(name for name, count in counts.items() if count == 1)


def calls_of(graph: fx.GraphModule, layers: Sequence[str]) -> Calls:
    """The calls of the named layers; raises UnsupportedError for a layer that the graph does not call."""
    wanted = set(layers)
    nodes = tuple(n for n in graph.graph.nodes if n.op == "call_module" and n.target in wanted)
    lost = sorted(wanted - {str(node.target) for node in nodes})
    if lost:
        raise UnsupportedError(
            f"layer {lost[0]!r} is not found in the traced model, as something else computes with its "
            "weight; leave it out of the plan"
        )
    return Calls(graph, nodes)


def check_no_factors(layer: EncodedLayer, name: str) -> None:
    """Raise UnsupportedError for a layer that multiplies its input by smoothing factors as it runs."""
    if layer.input_factors is not None:
        raise UnsupportedError(
            f"layer {name!r} smooths its input as it runs, after a static quantizer would have rounded it: "
            "leave it out, or use dynamic_activations for it"
        )


def read_earlier_codes(calls: Calls, bits: Mapping[str, int]) -> None:
    """Let each call read what an earlier decision rounded to its width, in place, or the value as it was."""
    for call in calls.nodes:
        read = call.all_input_nodes[0]
        value = read if _bits(calls.graph, read) is None else read.all_input_nodes[0]
        wanted = bits[str(call.target)]
        rounded = next((user for user in value.users if _bits(calls.graph, user) == wanted), value)
        if rounded is not read:
            call.replace_input_with(read, rounded)


def _bits(graph: fx.GraphModule, node: fx.Node) -> int | None:
    """Of the codes that a node rounds to, where it is a quantizer."""
    module = module_of(graph, node)
    return module.bits if isinstance(module, StaticQuantizer) else None


def grids_of(
    graph: fx.GraphModule,
    batches: Sequence[Mapping[str, Tensor]],
    placement: Placement,
    method: RangeMethod,
) -> Grids:
    """Scale and zero point of each value that is placed."""
    histograms = observe(graph, batches, placement.own)
    if method == "adaptive":
        return adaptive_grids(graph, batches, placement, histograms)
    return {
        (node, bits): code_parameters(*activation_range(histograms[node], method, bits), bits)
        for node, bits in placement.grids()
    }


def step_read(graph: fx.GraphModule, call: fx.Node, placement: Placement, grids: Grids) -> float:
    """The step of the codes that a call reads; 1 where its layer rounds its input itself."""
    read = call.all_input_nodes[0]
    before = module_of(graph, read)
    if isinstance(before, StaticQuantizer):
        return float(before.scale)
    source = placement.source_of(read)
    return 1.0 if source is None else grids[source, placement.bits_of(call)][0]


def round_values(graph: fx.GraphModule, placement: Placement, grids: Grids) -> None:
    """Insert the quantizers, in place."""
    insert(graph, placement, {key: StaticQuantizer(*grid, key[1]) for key, grid in grids.items()})


def read_codes(graph: fx.GraphModule, call: fx.Node, step: float, *, bits: int, integer_bias: bool) -> None:
    """Tell a layer the step of its input's codes; its bias joins the integer sums where the kernel can.

    A layer that is called twice reads two inputs of different steps: its bias stays float.
    """
    layer = module_of(graph, call)
    if not isinstance(layer, EncodedLayer) or isinstance(layer.layer, nn.Embedding):
        return
    layer.input_scale = torch.tensor(step)
    layer.input_bits = bits
    is_matmul = isinstance(layer.layer, nn.Linear) and call.meta["val"].dim() != 2
    # no kernel adds an integer bias to a product of more than two axes
    layer.integer_bias = integer_bias and not is_matmul


def takes_integer_bias(graph: fx.GraphModule, call: fx.Node, step: float) -> bool:
    """Whether the bias can be a sum of products of codes: one step a row, neither too fine nor too coarse."""
    layer = module_of(graph, call)
    if not isinstance(layer, EncodedLayer) or isinstance(layer.layer, nn.Embedding):
        return False
    weight = layer.encoding()
    if not isinstance(weight, AffineWeight) or weight.zero_point is not None or weight.scale.shape[1] > 1:
        return False
    bias, steps = layer.layer.bias, weight.scale.reshape(-1) * step
    largest = torch.zeros(()) if bias is None else (bias.detach().abs() / steps).max()
    return bool(steps.min() >= LEAST_STEP) and bool(largest <= LARGEST_BIAS_CODE)
