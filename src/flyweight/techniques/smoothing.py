"""Smoothing: channels of large inputs are divided by factors that the weights which read them take over.

With ``method=smoothquant`` input and weight share the range of each channel, which helps where inputs are
rounded; with ``method=awq`` the columns that matter most to the output are scaled up before weights are
rounded. Factors are folded into the norm or layer before; where the graph does not allow it, the input is
multiplied.

Source: Xiao et al. 2022, arXiv:2211.10438; Lin et al. 2023, arXiv:2306.00978; formulas and differences in
`flyweight.techniques._smoothing_factors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.channels.scales import (
    computes_the_same,
    mask_of,
    multiply,
    multiply_columns,
    weight_of,
)
from flyweight.channels.sites import Seen, Site, observe_inputs, sites
from flyweight.channels.trace import Channels, trace
from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import InputError, NothingFound, UnsupportedError
from flyweight.measure.graph import ATEN, capture
from flyweight.techniques import _settings
from flyweight.techniques._affine import form_of
from flyweight.techniques._smoothing_factors import awq, smoothquant
from flyweight.tensors.affine import GRANULARITIES
from flyweight.tensors.ranges import RANGE_METHODS

if TYPE_CHECKING:
    from flyweight.model import Model

METHODS = ("smoothquant", "awq")
_TAKEN = frozenset({"linear", "conv1d", "conv2d"})
# Of the squared error: a multiplication costs a pass over the input, which less is not worth.
LEAST_GAIN_OF_A_MULTIPLICATION = 0.05


@final
class Smoothing:
    """See the module's docstring.

    Settings: ``method``; ``alpha`` of smoothquant, 0..1; ``bits``, ``symmetric``, ``granularity``,
    ``group_size`` and ``range_method`` of the rounding that awq searches for; ``multiply``: inputs too whose
    factors fold nowhere. Convolutions are not smoothed: they take up factors of the layers after them.
    """

    name = "smoothing"
    stage = Stage.TRANSFORM
    defaults: Mapping[str, Scalar] = {
        "method": "awq",
        "alpha": 0.5,
        "bits": 4,
        "symmetric": True,
        "granularity": "channel",
        "group_size": 32,
        "range_method": "minmax",
        "multiply": True,
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every linear layer, and convolutions, which may come before one; by either method."""
        names = [layer.name for layer in profile.layers if layer.op in _TAKEN]
        if any(layer.op == "linear" for layer in profile.layers):
            for name in names:
                yield Decision(self.name, (name,), self.stage, {})
                yield Decision(self.name, (name,), self.stage, {"method": "smoothquant"})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range, UnsupportedError for an embedding."""
        form_of(_checked(decision))
        for name in decision.layers:
            if profile.by_name[name].op not in _TAKEN:
                raise UnsupportedError(
                    f"layer {name!r} is of kind {profile.by_name[name].op}: smoothing takes linear layers, "
                    "and convolutions before them; leave it out"
                )
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; its module becomes a graph where an input is multiplied.

        Raises:
            InputError: There are no calibration batches.
            NothingFound: Nothing can be smoothed.
            UnsupportedError: The model cannot be traced.
        """
        settings = _checked(decision)
        if not batches:
            raise InputError("smoothing needs calibration data to see which inputs are large: give --data")
        graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
        channels = trace(graph, model, decision.layers)
        found = list(sites(graph, channels, multiply=bool(settings["multiply"])))
        if not found:
            raise NothingFound(
                f"smoothing finds no linear layer of model {model.name!r} whose input it can scale"
            )
        seen = observe_inputs(model, found, batches, products=settings["method"] == "awq")
        chosen = [_factors(model.module, site, own, settings) for site, own in zip(found, seen, strict=True)]
        with computes_the_same(model, self.name):
            smoothed = [
                (s, factors) for s, factors in zip(found, chosen, strict=True) if (factors != 1).any()
            ]
            if any(site.node is not None for site, _ in smoothed):
                model.module = graph
            for site, factors in smoothed:
                _fold(model.module, channels, site, factors)
                _multiply_input(graph, site, factors)


def _checked(decision: Decision) -> dict[str, Scalar]:
    settings = _settings.complete(decision, Smoothing.defaults)
    _settings.choice(settings, "method", METHODS)
    _settings.choice(settings, "granularity", GRANULARITIES)
    _settings.choice(settings, "range_method", RANGE_METHODS)
    if not 0 <= float(settings["alpha"]) <= 1:
        raise ValueError(f"alpha must be in 0..1, got {settings['alpha']}")
    return settings


@torch.no_grad()
def _factors(
    root: nn.Module, site: Site, seen: Seen, settings: Mapping[str, Scalar]
) -> Float[Tensor, " channels"]:
    """What the site's inputs are divided by."""
    weights = {name: weight_of(root, name) for name in site.reads}
    if settings["method"] == "smoothquant":
        return smoothquant(site, seen, weights, alpha=float(settings["alpha"]))
    masks = {name: mask_of(root, name) for name in site.reads}
    choice = awq(site, seen, weights, masks, form_of(settings))
    worth = 1 - (0 if site.node is None else LEAST_GAIN_OF_A_MULTIPLICATION)
    return choice.factors if choice.error < worth * choice.plain_error else torch.ones(site.channels)


@torch.no_grad()
def _fold(root: nn.Module, channels: Channels, site: Site, factors: Float[Tensor, " channels"]) -> None:
    """Divide what writes the site's inputs by the factors, and multiply its columns, in place."""
    if site.folds is not None:
        sides, classes = site.folds
        by_class = torch.ones(channels.count())
        by_class[classes] = 1 / factors
        multiply(root, sides, by_class)


@torch.no_grad()
def _multiply_input(graph: fx.GraphModule, site: Site, factors: Float[Tensor, " channels"]) -> None:
    """Multiply the site's inputs by a parameter, and its columns by the factors, in place."""
    if site.node is None:
        return
    name = f"factors_of_{site.node.name}"
    graph.register_parameter(name, nn.Parameter(1 / factors, requires_grad=False))
    readers = [n for n in site.node.users if n.op == "call_module" and str(n.target) in site.reads]
    with graph.graph.inserting_before(readers[0]):
        parameter = graph.graph.get_attr(name)
        product = graph.graph.call_function(ATEN.mul.Tensor, (site.node, parameter))
    product.meta = dict(site.node.meta)
    for reader in readers:
        reader.replace_input_with(site.node, product)
    for layer in site.reads:
        multiply_columns(graph, layer, site.over_columns(layer, factors))
    graph.graph.lint()
    graph.recompile()
