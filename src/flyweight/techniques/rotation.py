"""Rotation: the channels of a transformer's stream are rotated, so that no channel is larger than the others.

What layers write to the stream is rotated by one orthogonal matrix, and undone in what they read; both are
folded into the weights, after the weights of norms were folded into the layers that read them. Values of
attention are rotated head by head in the same way.

Source: Ashkboos et al. 2024, arXiv:2404.00456 (QuaRot), sections 3 and 4; Ashkboos et al. 2024,
arXiv:2401.15024 (SliceGPT), section 3.
Differs: where norms subtract the mean over channels, the rotation is one that keeps it, instead of folding
the subtraction into the layers before and exchanging the norms. Nothing is rotated while the model runs, but
where the stream leaves: before an output of the model, and before an output layer that shares its weight with
an embedding, behind a norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, fx

from flyweight.channels.heads import value_heads
from flyweight.channels.scales import computes_the_same
from flyweight.channels.stream_rules import StreamTracer
from flyweight.channels.streams import Stream
from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import NothingFound, UnsupportedError
from flyweight.measure.calibrate import in_graph_order
from flyweight.measure.graph import capture
from flyweight.techniques import _settings
from flyweight.techniques._rotate import Turn, inserts, rotate_heads, rotate_streams, sharing_obstacles
from flyweight.tensors.orthogonal import mean_keeping_rotation, rotation

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class Rotation:
    """See the module's docstring.

    Settings: ``seed``; ``stream``: rotate what layers add up; ``values``: rotate the values of attention.
    """

    name = "rotation"
    stage = Stage.TRANSFORM
    defaults: Mapping[str, Scalar] = {"seed": 0, "stream": True, "values": True}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every layer, where linear layers and others write as many channels as linear layers read."""
        linear = [layer for layer in profile.layers if layer.op == "linear"]
        tables = [layer for layer in profile.layers if layer.op == "embedding"]
        written = Counter([layer.rows for layer in linear] + [layer.columns for layer in tables])
        added_up = {layer.rows for layer in linear if written[layer.rows] > 1}
        if added_up & {layer.columns for layer in linear}:
            for layer in profile.layers:
                yield Decision(self.name, (layer.name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError if nothing is to be rotated."""
        _checked(decision)
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; its module becomes a graph where a layer is put in.

        Raises:
            NothingFound: What is to be rotated is not found, or something stands in its way.
            UnsupportedError: The model cannot be traced, or the decision leaves out layers of a stream.
        """
        settings = _checked(decision)
        graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
        generator = torch.Generator().manual_seed(int(settings["seed"]))
        inputs = in_graph_order(graph, model.example_inputs)
        turns = _turns(graph, model, decision, generator) if settings["stream"] else []
        heads = list(value_heads(graph, decision.layers, inputs)) if settings["values"] else []
        if not turns and not heads:
            raise NothingFound(
                f"rotation finds no attention in model {model.name!r} whose values only move and are summed "
                "up"
            )
        with computes_the_same(model, self.name):
            if any(inserts(graph, turn.stream) for turn in turns):
                model.module = graph
            rotate_streams(model.module, turns)
            for own in heads:
                rotate_heads(model.module, own, rotation(own.rows.shape[1], generator))


def _checked(decision: Decision) -> dict[str, Scalar]:
    settings = _settings.complete(decision, Rotation.defaults)
    if not settings["stream"] and not settings["values"]:
        raise ValueError("one of stream and values must be true")
    return settings


def _turns(graph: fx.GraphModule, model: Model, decision: Decision, generator: torch.Generator) -> list[Turn]:
    """Every stream that can be rotated, with its matrix.

    Raises:
        NothingFound: There is none.
        UnsupportedError: One has layers that the decision leaves out.
    """
    tracer = StreamTracer(graph)
    with torch.no_grad():
        tracer.run(*in_graph_order(graph, model.example_inputs))
    found = [stream for stream in tracer.found() if stream.is_residual]
    for stream in found:
        if not stream.obstacles:
            stream.obstacles.extend(sharing_obstacles(graph, stream))
    turned = [stream for stream in found if not stream.obstacles]
    if not turned:
        raise NothingFound(f"the stream of model {model.name!r} cannot be rotated: {_reason(found)}")
    for stream in turned:
        left_out = sorted(stream.layers - set(decision.layers))
        if left_out:
            raise UnsupportedError(
                f"rotation has to change layer {left_out[0]!r} too, which the plan leaves out: a stream is "
                "rotated in all layers that write or read it"
            )
    makes = {True: mean_keeping_rotation, False: rotation}
    return [Turn(stream, makes[stream.keeps_mean](stream.width, generator)) for stream in turned]


def _reason(found: Sequence[Stream]) -> str:
    """Of the stream with the most sums, why it is not rotated."""
    instead = "setting stream=false rotates the values of attention alone"
    if not found:
        return f"nothing that linear layers read is a sum of what layers write; {instead}"
    return f"{max(found, key=lambda stream: stream.sums).obstacles[0]} stands in its way; {instead}"
