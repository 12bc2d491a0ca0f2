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
from torch import Tensor, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.techniques import _settings
from flyweight.techniques._affine import encoder_for, form_of, predicted, statistics_for
from flyweight.techniques._bias_correction import correct, joined, mean_outputs
from flyweight.techniques._input_grid import absorb, first_convolution
from flyweight.techniques._placement import JOINT_BITS, place
from flyweight.techniques._static_inputs import (
    LARGEST_BIAS_CODE,
    LEAST_STEP,
    calls_of,
    grids_of,
    read_codes,
    round_values,
    step_read,
    traced,
)
from flyweight.tensors.encoded import EncodedLayer, attach
from flyweight.tensors.ranges import RANGE_METHODS, InputStatistics

if TYPE_CHECKING:
    from flyweight.model import Model


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
        form = form_of(settings)
        seen = statistics_for(model, decision, form, batches)
        # the bias takes the mean of the error
        inputs = {name: own and InputStatistics(own.energy) for name, own in seen.items()}
        graph = traced(model, batches, self.name)
        calls = calls_of(graph, decision.layers)
        integer, sample = calls.multiplying, joined(batches)
        wanted = mean_outputs(graph, sample, integer) if settings["bias_correction"] else {}
        first = first_convolution(graph, integer)
        placement = place(graph, integer, reads_its_own=None if first is None else first.node)
        grids = grids_of(graph, batches, placement, settings["activation_range_method"])  # type: ignore[arg-type]
        grid = None if first is None else absorb(first, batches)
        if first is not None:  # it reads codes then, of other sizes
            inputs[first.name] = None
        steps = {str(n.target): step_read(graph, n, placement, grids) for n in calls.nodes}
        for name in decision.layers:
            least = _least_scale(graph.get_submodule(name), steps[name])
            encoder = encoder_for(graph, name, form, least_scale=least, inputs=inputs[name])
            layer = attach(graph, name, encoder, self.name)
            if first is not None and name == first.name:
                layer.input_quantizer = grid
        for node in calls.nodes:
            name = str(node.target)
            read_codes(graph, node, steps[name], bits=JOINT_BITS, integer_bias=name in calls.once)
        round_values(graph, placement, grids)
        correct(graph, sample, {name: mean for name, mean in wanted.items() if name in calls.once})
        model.module = graph


def _checked(decision: Decision) -> dict[str, Scalar]:
    settings = _settings.complete(decision, StaticInt8.defaults)
    if settings["bits"] != 8:
        raise ValueError(f"static_int8 stores 8 bits, got bits={settings['bits']}; use weight_only for fewer")
    _settings.choice(settings, "range_method", RANGE_METHODS)
    _settings.choice(settings, "activation_range_method", RANGE_METHODS)
    return settings


def _least_scale(module: nn.Module, input_scale: float) -> Tensor | None:
    """(rows,), the least weight scale at which sums have a step, and the bias takes few enough of them.

    Channels that training let die have weights near 0 and a bias that is not.
    """
    layer = module.layer if isinstance(module, EncodedLayer) else module
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
        return None
    bias = torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()
    return ((bias.abs() / LARGEST_BIAS_CODE).clamp_min(LEAST_STEP) / input_scale).clamp_min(LEAST_STEP)
