"""GPTQ: weights rounded one column after the other, the columns left making up for the error so far.

Each layer is solved on what it reads once all layers before it are quantized, towards what the float model
puts out; where its output is added to a residual stream, it makes up for the error of that stream too. With
``target=layer`` it is solved towards what its float weight puts out there, as in the source. Linear layers
and convolutions alike. Embeddings, which multiply nothing, and weights that two layers share are rounded to
nearest.

Source: Frantar et al. 2022, arXiv:2210.17323; Li et al. 2025, arXiv:2504.02692 (GPTAQ: the float target);
Behdin et al. 2023, arXiv:2309.01885 (coordinate descent).
Differs: the target is solved for in closed form, the error of residual streams included; scales are searched
on the diagonal of the squared output error and refitted to the codes; the bias takes what is left of the
mean. A row is never worse than rounded to nearest on the grids that were searched, by the squared output
error on the calibration data, damping included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, cast, final

from torch import Tensor, fx, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.curvature import Moments, kept_tokens, moments
from flyweight.measure.graph import capture
from flyweight.measure.walk import Batches, Keep, Seen, check_called, walk
from flyweight.techniques import _settings
from flyweight.techniques._affine import encoder_for, form_of, predicted
from flyweight.techniques._compensation import Effort, as_stored, bias_shift, round_to_outputs
from flyweight.tensors.affine import GRANULARITIES, AffineForm
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import EncodedLayer, Layer, attach
from flyweight.tensors.rounding import DAMPING

if TYPE_CHECKING:
    from flyweight.model import Model

TARGETS = ("model", "layer")


@final
class GPTQ:
    """See the module's docstring.

    Settings: ``bits`` 2..8 or 16; ``symmetric``; ``granularity`` tensor, channel or group; ``group_size`` (by
    group, at least 2); ``target``, ``model`` or ``layer``; ``damping`` above 0, at most 1; ``rounds`` of
    refitting the scales and ``sweeps`` of descent in each; ``bias_correction``.
    """

    name = "gptq"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {
        "bits": 4,
        "symmetric": False,
        "granularity": "channel",
        "group_size": 32,
        "target": "model",
        "damping": DAMPING,
        "rounds": 4,
        "sweeps": 2,
        "bias_correction": True,
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """4 bits by channel, and for linear layers and embeddings by group, for every layer."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {})
            if layer.op in {"linear", "embedding"}:
                yield Decision(self.name, (layer.name,), self.stage, {"granularity": "group"})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        settings = self._checked(decision)
        form = form_of(settings)
        effort_of(settings)
        for name in decision.layers:
            profile = profile.with_layer(predicted(profile.by_name[name], form))
        return profile

    def apply(self, model: Model, decision: Decision, batches: Batches) -> None:
        """Change ``model`` in place; its module becomes a graph.

        Raises:
            InputError: There are no calibration batches.
            UnsupportedError: The model cannot be traced, or a layer reads values that are not finite.
        """
        self.apply_together(model, (decision,), batches)

    def apply_together(self, model: Model, decisions: Sequence[Decision], batches: Batches) -> None:
        """All decisions in one walk, so that each layer makes up for the errors of all before it, in place.

        Raises as `apply` does.
        """
        self._walk(model, decisions, batches, float_batches=None, keep=list)

    def apply_to_part(
        self,
        model: Model,
        decision: Decision,
        batches: Batches,
        *,
        float_batches: Batches | None,
        keep: Keep,
    ) -> None:
        """The same for a part of a larger model; ``float_batches`` and ``keep`` as for `walk`."""
        self._walk(model, (decision,), batches, float_batches=float_batches, keep=keep)

    def _walk(
        self,
        model: Model,
        decisions: Sequence[Decision],
        batches: Batches,
        *,
        float_batches: Batches | None,
        keep: Keep,
    ) -> None:
        chosen = {name: self._checked(decision) for decision in decisions for name in decision.layers}
        graph, alone = captured(model, list(chosen), batches, self.name)
        for name in set(chosen) - set(alone):
            _round_to_nearest(graph, name, form_of(chosen[name]))

        def visit(name: str, read: Moments) -> None:
            own = chosen[name]
            correct = bool(own["bias_correction"])
            _round(graph, name, read, form_of(own), effort_of(own), bias_correction=correct)

        themselves = {name for name, own in chosen.items() if own["target"] == "layer"}
        walk_moments(
            graph, batches, alone, visit, by_themselves=themselves, float_batches=float_batches, keep=keep
        )

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        _settings.choice(settings, "granularity", GRANULARITIES)
        _settings.choice(settings, "target", TARGETS)
        return settings


def effort_of(settings: Mapping[str, Scalar]) -> Effort:
    """How far rounding goes; raises ValueError for a setting out of range."""
    return Effort(
        damping=float(settings["damping"]), rounds=int(settings["rounds"]), sweeps=int(settings["sweeps"])
    )


def captured(
    model: Model, names: Sequence[str], batches: Batches, technique: str
) -> tuple[fx.GraphModule, list[str]]:
    """The model's graph, which becomes its module, and those of the layers that `multiplies_alone`.

    Raises:
        InputError: There are no calibration batches.
        UnsupportedError: The model cannot be traced, or its graph does not call a layer.
    """
    if not batches:
        raise InputError(f"{technique} needs calibration data to know what each layer reads: give --data")
    graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
    model.module = graph
    check_called(graph, list(names))
    return graph, [name for name in names if multiplies_alone(graph, name)]


def walk_moments(
    graph: fx.GraphModule,
    batches: Batches,
    names: Sequence[str],
    visit: Callable[[str, Moments], None],
    *,
    by_themselves: Set[str] = frozenset(),
    float_batches: Batches | None = None,
    keep: Keep = list,
) -> None:
    """`flyweight.measure.walk.walk`, with the moments of what each layer reads.

    Of those ``by_themselves``, what the float model puts out does not matter.
    """
    tokens = [kept_tokens(batch) for batch in batches]

    def reached(name: str, seen: Seen) -> None:
        outputs = None if name in by_themselves else seen.outputs
        visit(name, _read_by(graph, name, seen.inputs, outputs, tokens))

    needed = not by_themselves >= set(names)
    walk(graph, batches, names, reached, float_batches=float_batches, keep=keep, outputs=needed)


def layer_at(graph: nn.Module, name: str) -> Layer:
    """The layer of a name, encoded or not."""
    module = graph.get_submodule(name)
    return module.layer if isinstance(module, EncodedLayer) else cast("Layer", module)


def multiplies_alone(graph: nn.Module, name: str) -> bool:
    """Whether the layer's weight is multiplied by what it reads, and belongs to no other layer."""
    layer = layer_at(graph, name)
    owners = sum(parameter is layer.weight for _, parameter in graph.named_parameters(remove_duplicate=False))
    return owners == 1 and not isinstance(layer, nn.Embedding)


def weight_of(graph: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """The weight as the stage before left it, and where it is kept; None where it is kept everywhere."""
    module = graph.get_submodule(name)
    before = module.encoding() if isinstance(module, EncodedLayer) and module.encoders else None
    return (layer_at(graph, name).weight, None) if before is None else (before.decode(), before.mask)


def _read_by(
    graph: nn.Module,
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor] | None,
    tokens: Sequence[Tensor | None],
) -> Moments:
    """Moments of what the weight is multiplied by, and of what the layer ought to put out."""
    module = graph.get_submodule(name)
    if isinstance(module, EncodedLayer) and module.input_factors is not None:
        inputs = [x * module.input_factors for x in inputs]
    try:
        return moments(layer_at(graph, name), inputs, outputs, tokens)
    except ValueError as error:
        raise UnsupportedError(
            f"layer {name!r} {error}: leave it out of the plan, or use weight_only, which needs no data"
        ) from error


def _round_to_nearest(graph: nn.Module, name: str, form: AffineForm) -> None:
    module = graph.get_submodule(name)
    before = module.encoding() if isinstance(module, EncodedLayer) and module.encoders else None
    encoder = encoder_for(graph, name, form).keep_grid(layer_at(graph, name).weight, before)
    attach(graph, name, encoder, GPTQ.name)


def _round(
    graph: nn.Module, name: str, read: Moments, form: AffineForm, effort: Effort, *, bias_correction: bool
) -> None:
    """Round the layer's weight and keep the grid, in place."""
    layer, (weight, mask) = layer_at(graph, name), weight_of(graph, name)
    bias = layer.bias if bias_correction and not isinstance(layer, nn.Embedding) else None
    rounded = round_to_outputs(weight, read if bias is None else read.centred(), form, effort, mask)
    scale, zero_point = as_stored(rounded, form)
    if bias is not None:
        layer.bias = nn.Parameter((bias + bias_shift(weight, rounded, read)).to(bias.dtype))
    layer.weight = nn.Parameter(rounded.decode().reshape(layer.weight.shape).to(layer.weight.dtype))
    encoder = AffineEncoder(form, scale=scale, zero_point=zero_point, mask=mask)
    attach(graph, name, encoder, GPTQ.name)
