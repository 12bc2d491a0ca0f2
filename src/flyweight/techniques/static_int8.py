"""Static W8A8: int8 weights per channel, uint8 activations with ranges fixed by calibration.

Source: Jacob et al. 2017, arXiv:1712.05877 (integer arithmetic, int32 bias); Nagel et al. 2021,
arXiv:2106.08295 (ranges).
Differs: additions and pools between layers are rounded too, as integer kernels need; batch norms must be
folded before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, fx, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.activation_ranges import activation_range, code_parameters
from flyweight.measure.calibrate import observe
from flyweight.measure.graph import capture, module_of
from flyweight.techniques import _settings
from flyweight.techniques._affine import encoder_for, form_of, predicted
from flyweight.techniques._bias_correction import correct, joined, mean_outputs
from flyweight.techniques._input_grid import absorb, first_convolution
from flyweight.techniques._placement import insert, place
from flyweight.tensors.activation import StaticQuantizer
from flyweight.tensors.encoded import EncodedLayer, attach
from flyweight.tensors.ranges import RANGE_METHODS

if TYPE_CHECKING:
    from flyweight.model import Model

LARGEST_BIAS_CODE = 2.0**30  # half of int32: the rest is for the products
LEAST_STEP = 2.0**-120  # of the sums, input scale times weight scale: still a normal float


@final
class StaticInt8:
    """See the module's docstring. Settings: ``range_method`` of weights, ``activation_range_method``,
    ``bias_correction``."""

    name = "static_int8"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {
        "bits": 8,
        "range_method": "minmax",
        "activation_range_method": "mse",
        "bias_correction": True,
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every layer, embeddings included."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        form = form_of(_checked(decision))
        for name in decision.layers:
            layer = predicted(profile.by_name[name], form)
            if layer.op != "embedding":
                layer = replace(layer, activation_bits=8, activation_mode="static")
            profile = profile.with_layer(layer)
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; its module becomes a graph.

        Raises:
            InputError: There are no calibration batches.
            UnsupportedError: The model cannot be traced, or not with these layers.
        """
        settings = _checked(decision)
        if not batches:
            raise InputError(
                "static_int8 needs calibration data to find the ranges of activations: give --data"
            )
        graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
        called = [n for n in graph.graph.nodes if n.op == "call_module" and n.target in set(decision.layers)]
        _check_found(decision.layers, called)
        integer = [str(n.target) for n in called if not isinstance(_inner(graph, n), nn.Embedding)]
        sample = joined(batches)
        wanted = mean_outputs(graph, sample, integer) if settings["bias_correction"] else {}
        first = first_convolution(graph, integer)
        placement = place(graph, integer, reads_its_own=None if first is None else first.node)
        histograms = observe(graph, batches, placement.own)
        grid = None if first is None else absorb(first, batches)
        method = _settings.choice(settings, "activation_range_method", RANGE_METHODS)
        parameters = {n: code_parameters(*activation_range(h, method)) for n, h in histograms.items()}  # type: ignore[arg-type]
        sources = {n: placement.quantizer_of(n.all_input_nodes[0]) for n in called}
        steps = {str(n.target): 1.0 if s is None else parameters[s][0] for n, s in sources.items()}
        once = {name for name in steps if sum(n.target == name for n in called) == 1}
        form = form_of(settings)
        for name in decision.layers:
            least = _least_scale(graph.get_submodule(name), steps[name])
            layer = attach(graph, name, encoder_for(graph, name, form, least_scale=least), self.name)
            if first is not None and name == first.name:
                layer.input_quantizer = grid
        for node in called:
            _read_codes(graph, node, steps[str(node.target)], integer_bias=node.target in once)
        insert(graph, placement, {n: StaticQuantizer(*p) for n, p in parameters.items()})
        correct(graph, sample, {name: mean for name, mean in wanted.items() if name in once})
        model.module = graph


def _checked(decision: Decision) -> dict[str, Scalar]:
    settings = _settings.complete(decision, StaticInt8.defaults)
    if settings["bits"] != 8:
        raise ValueError(f"static_int8 stores 8 bits, got bits={settings['bits']}; use weight_only for fewer")
    _settings.choice(settings, "range_method", RANGE_METHODS)
    _settings.choice(settings, "activation_range_method", RANGE_METHODS)
    return settings


def _check_found(layers: Sequence[str], called: Sequence[fx.Node]) -> None:
    lost = sorted(set(layers) - {str(node.target) for node in called})
    if lost:
        raise UnsupportedError(
            f"layer {lost[0]!r} is not found in the traced model, as something else computes with its "
            "weight; leave it out of the plan"
        )


def _inner(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    module = module_of(graph, node)
    return module.layer if isinstance(module, EncodedLayer) else module


def _least_scale(module: nn.Module, input_scale: float) -> Tensor | None:
    """(rows,), the least weight scale at which sums have a step, and the bias takes few enough of them.

    Channels that training let die have weights near 0 and a bias that is not.
    """
    layer = module.layer if isinstance(module, EncodedLayer) else module
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
        return None
    bias = torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()
    return ((bias.abs() / LARGEST_BIAS_CODE).clamp_min(LEAST_STEP) / input_scale).clamp_min(LEAST_STEP)


def _read_codes(graph: fx.GraphModule, node: fx.Node, scale: float, *, integer_bias: bool) -> None:
    """Tell a layer the step of its input's codes; its bias joins the integer sums where the kernel can.

    A layer that is called twice reads two inputs of different steps: its bias stays float.
    """
    layer = module_of(graph, node)
    if not isinstance(layer, EncodedLayer) or isinstance(layer.layer, nn.Embedding):
        return
    layer.input_scale = torch.tensor(scale)
    is_matmul = isinstance(layer.layer, nn.Linear) and node.meta["val"].dim() != 2
    # no kernel adds an integer bias to a product of more than two axes
    layer.integer_bias = integer_bias and not is_matmul
