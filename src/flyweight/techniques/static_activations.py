"""Inputs of layers rounded to 2 to 8 bits, on ranges fixed by calibration, under weights of any form.

What an earlier stage has made of the weights stays: 4-bit weights with this are W4A8. Additions and pools
between the layers are rounded too, to 8 bits, as integer kernels need. Fewer than 8 bits run in PyTorch
alone.

Source: Jacob et al. 2017, arXiv:1712.05877 (integer arithmetic); Nagel et al. 2021, arXiv:2106.08295
(ranges); Zhou et al. 2016, arXiv:1606.06160, section 2.6 (first and last layer apart).
Differs: the first and the last layer do not stay float, but keep ``edge_bits``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast, final

from torch import Tensor

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.measure.profile import profile
from flyweight.techniques import _settings
from flyweight.techniques._activations import check_activation_bits, check_reads_floats
from flyweight.techniques._bias_correction import correct, joined, mean_outputs
from flyweight.techniques._placement import JOINT_BITS, place
from flyweight.techniques._static_inputs import (
    calls_of,
    check_no_factors,
    grids_of,
    read_codes,
    read_earlier_codes,
    round_values,
    step_read,
    takes_integer_bias,
    traced,
)
from flyweight.tensors.plain import attach_plain
from flyweight.tensors.ranges import RANGE_METHODS

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class StaticActivations:
    """See the module's docstring.

    Settings: ``activation_bits`` 2..8, of what layers read; ``edge_bits`` likewise, of what the model's first
    and last layer read; ``activation_range_method``; ``bias_correction``, of the shift that rounding the
    inputs makes.
    """

    name = "static_activations"
    stage = Stage.ACTIVATIONS
    defaults: Mapping[str, Scalar] = {
        "activation_bits": 8,
        "edge_bits": 8,
        "activation_range_method": "mse",
        "bias_correction": True,
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every layer that multiplies what it reads, at 8 bits."""
        for layer in profile.layers:
            if layer.op != "embedding":
                yield Decision(self.name, (layer.name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range, UnsupportedError for layers that read no floats."""
        widths = _widths(profile, self._checked(decision))
        for name in decision.layers:
            layer = profile.by_name[name]
            check_reads_floats(layer, self.name)
            profile = profile.with_layer(
                replace(layer, activation_bits=widths[name], activation_mode="static")
            )
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; its module becomes a graph.

        Raises:
            InputError: There are no calibration batches.
            UnsupportedError: The model cannot be traced, or not with these layers.
        """
        settings = self._checked(decision)
        widths = _widths(profile(model), settings)
        graph = traced(model, batches, self.name)
        calls = calls_of(graph, decision.layers)
        for name in decision.layers:
            check_no_factors(attach_plain(graph, name, self.name), name)
        sample = joined(batches)
        wanted = mean_outputs(graph, sample, decision.layers) if settings["bias_correction"] else {}
        read_earlier_codes(calls, widths)
        placement = place(graph, decision.layers, bits=widths)
        grids = grids_of(graph, batches, placement, settings["activation_range_method"])  # type: ignore[arg-type]
        for node in calls.nodes:
            bits, step = widths[str(node.target)], step_read(graph, node, placement, grids)
            fits = bits == JOINT_BITS and node.target in calls.once and takes_integer_bias(graph, node, step)
            read_codes(graph, node, step, bits=bits, integer_bias=fits)
        round_values(graph, placement, grids)
        correct(graph, sample, {name: mean for name, mean in wanted.items() if name in calls.once})
        model.module = graph

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        for key in ("activation_bits", "edge_bits"):
            check_activation_bits(settings, key)
        _settings.choice(settings, "activation_range_method", RANGE_METHODS)
        return settings


def _widths(profile: ModelProfile, settings: Mapping[str, Scalar]) -> dict[str, int]:
    """Bits of what each layer would read."""
    multiplying = [layer.name for layer in profile.layers if layer.op != "embedding"]
    widths = dict.fromkeys(multiplying, cast("int", settings["activation_bits"]))
    return widths | dict.fromkeys(multiplying[:1] + multiplying[-1:], cast("int", settings["edge_bits"]))
