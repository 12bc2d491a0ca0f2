"""Cross-layer equalization: what one layer's channels are scaled down by, the next layer's are scaled up by.

A weight with one scale for all channels is rounded well where all channels use the same range. Between two
layers with only homogeneous operators in between, each channel has a factor that can be moved from one layer
to the other; it is chosen so that both use the same range, in several sweeps over the model.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1 (equation 11); for absorbed biases see
`flyweight.techniques._bias_absorption`.
Differs: channels that several layers read are scaled together, by the largest of their ranges; a clamp from 0
to 6 is not taken for a relu: where asked, it gets a bound for each channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.channels.classes import FIXED
from flyweight.channels.rules import scaled_layer
from flyweight.channels.scales import computes_the_same, grouped, multiply, weight_of
from flyweight.channels.trace import Channels, Side, trace
from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import InputError, NothingFound, UnsupportedError
from flyweight.measure.graph import ATEN, capture
from flyweight.techniques import _settings
from flyweight.techniques._bias_absorption import absorb

if TYPE_CHECKING:
    from flyweight.model import Model

CONVERGED = 1e-3  # largest change of the logarithm of a factor in one sweep
# Of a layer's largest weight: channels below are dead, and scaling them up would blow up their biases.
LEAST_RANGE = 2.0**-12
_TAKEN = frozenset({"linear", "conv1d", "conv2d"})


@final
class Equalization:
    """See the module's docstring.

    Settings: ``sweeps`` at most; ``sums``: layers whose outputs are added are scaled together, else left as
    they are; ``clamps``: channels are scaled through a clamp from 0 on (relu6) too, at the cost of one more
    operator; ``absorb_bias``: high biases too, after which outputs are only nearly the same.
    """

    name = "equalization"
    stage = Stage.TRANSFORM
    defaults: Mapping[str, Scalar] = {"sweeps": 40, "sums": False, "clamps": False, "absorb_bias": False}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every linear layer and convolution, where there are two."""
        names = [layer.name for layer in profile.layers if layer.op in _TAKEN]
        for name in names if len(names) > 1 else ():
            yield Decision(self.name, (name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range, UnsupportedError for an embedding."""
        _checked(decision)
        for name in decision.layers:
            if profile.by_name[name].op not in _TAKEN:
                raise UnsupportedError(
                    f"layer {name!r} is of kind {profile.by_name[name].op}: equalization takes linear layers "
                    "and convolutions; leave it out"
                )
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; its module becomes a graph where a clamp gets new bounds.

        Raises:
            InputError: Biases are to be absorbed, and there are no calibration batches.
            NothingFound: No layers can be equalized.
            UnsupportedError: The model cannot be traced.
        """
        settings = _checked(decision)
        if settings["absorb_bias"] and not batches:
            raise InputError("equalization with absorb_bias needs calibration data: give --data")
        graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
        channels = trace(
            graph, model, decision.layers, sums=bool(settings["sums"]), clamps=bool(settings["clamps"])
        )
        groups = [g for g in channels.groups() if {"rows", "columns"} <= {side.kind for side in g}]
        if not groups:
            raise NothingFound(
                f"equalization finds no two layers of model {model.name!r} with only relu, pooling and the "
                "like between them, or only with setting sums"
            )
        factors = equalizing(graph, groups, channels.count(), sweeps=int(settings["sweeps"])).float()
        with computes_the_same(model, self.name):
            if channels.clamps:
                model.module = graph
            multiply(model.module, channels.sides, factors)
            _set_bounds(graph, channels, factors)
        if settings["absorb_bias"]:
            absorb(model, graph, decision.layers, batches)


def _checked(decision: Decision) -> dict[str, Scalar]:
    settings = _settings.complete(decision, Equalization.defaults)
    if int(settings["sweeps"]) < 1:
        raise ValueError(f"sweeps must be at least 1, got {settings['sweeps']}")
    return settings


@torch.no_grad()
def equalizing(
    root: nn.Module, groups: Sequence[Sequence[Side]], count: int, *, sweeps: int
) -> Float[Tensor, " count"]:
    """What the values of each class are to be multiplied by so that both sides use the same range.

    Args:
        root: With the layers.
        groups: Of `Channels.groups`.
        count: Of classes.
        sweeps: At most.
    """
    factors = torch.ones(count, dtype=torch.float64)
    ranges = {
        side.name: _largest(root, side.name) for group in groups for side in group if side.kind != "parameter"
    }
    for _ in range(sweeps):
        change = 0.0
        for group in groups:
            step = _step(group, ranges, count)
            _scale(group, ranges, step)
            factors *= step
            change = max(change, float(step.log().abs().max()))
        if change < CONVERGED:
            break
    return factors


def _largest(root: nn.Module, name: str) -> Float[Tensor, "groups rows columns"]:
    """The largest weight of each row and column, over the kernel."""
    return grouped(scaled_layer(root, name), weight_of(root, name)).double().abs().amax(-1)


def _step(group: Sequence[Side], ranges: Mapping[str, Tensor], count: int) -> Float[Tensor, " count"]:
    """Equation 11: values times sqrt(r2 / r1), the ranges of what reads and of what writes them."""
    written, read = torch.zeros(2, count, dtype=torch.float64)
    for side in group:
        if side.kind == "parameter":
            continue
        own = ranges[side.name].amax(2 if side.kind == "rows" else 1).reshape(-1)
        alive = own.where(own > LEAST_RANGE * own.max(), 0.0)
        (written if side.kind == "rows" else read).scatter_reduce_(0, side.classes, alive, "amax")
    usable = (written > 0) & (read > 0)
    usable[FIXED] = False
    return torch.where(usable, (read / written).sqrt(), 1.0)


def _scale(group: Sequence[Side], ranges: Mapping[str, Tensor], step: Float[Tensor, " count"]) -> None:
    for side in group:
        if side.kind == "rows":
            weight = ranges[side.name]
            weight *= step[side.classes].reshape(len(weight), -1, 1)
        elif side.kind == "columns":
            weight = ranges[side.name]
            weight /= step[side.classes].reshape(len(weight), 1, -1)


@torch.no_grad()
def _set_bounds(graph: fx.GraphModule, channels: Channels, factors: Float[Tensor, " count"]) -> None:
    """``min(relu(x), bound)`` in place of each clamp whose channels were scaled, in place."""
    for node, classes in channels.clamps.items():
        high, name = node.args[2], f"bound_of_{node.name}"
        if not isinstance(high, int | float):
            raise UnsupportedError(f"the clamp {node.name!r} has no number for a bound")
        graph.register_parameter(name, nn.Parameter(high * factors[classes], requires_grad=False))
        with graph.graph.inserting_before(node):
            relu = graph.graph.call_function(ATEN.relu.default, (node.args[0],))
            bound = graph.graph.get_attr(name)
        relu.meta = dict(node.meta)
        node.target, node.args, node.kwargs = ATEN.minimum.default, (relu, bound), {}
    graph.graph.lint()
    graph.recompile()
