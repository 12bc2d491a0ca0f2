"""Rotating the weights around a stream or a head, in place, so that the model computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from flyweight.channels.heads import ValueHeads
from flyweight.channels.rules import Scaled
from flyweight.channels.streams import PLAIN, Affine, Stream
from flyweight.tensors.encoded import LAYERS, Layer


@final
@dataclass(frozen=True, eq=False)
class Turn:
    """A stream and how it is rotated: values are multiplied by ``matrix`` from the right, float64."""

    stream: Stream
    matrix: Float[Tensor, "width width"]


@torch.no_grad()
def rotate_streams(root: nn.Module, turns: Sequence[Turn]) -> None:
    """Rotate all that the streams' layers and parameters write, and undo it in what they read.

    Readers take over the weights of norms before them, which become ones; where the stream leaves, or a
    reader cannot, a linear layer is put in between.

    Args:
        root: The model's module; a graph where `inserts` of a stream is true.
        turns: Streams without obstacles.
    """
    norms = {name: tensor_at(root, name).double() for turn in turns for name in _norm_tensors(turn.stream)}
    for turn in turns:
        if isinstance(root, fx.GraphModule):
            _insert(root, turn, norms)
        tied = tied_readers(root, turn.stream)
        done: set[int] = set()
        for name, affine in turn.stream.readers.items():
            layer = _scaled(root, name)
            if name not in tied:
                _take_over(layer, affine, norms)
            if id(layer.weight) not in done:
                _turn(layer.weight, 1, turn.matrix)
            done.add(id(layer.weight))
        for name, kind in turn.stream.writers.items():
            if kind == "parameter":
                _turn(tensor_at(root, name), -1, turn.matrix)
            elif kind == "rows":
                _turn(_scaled(root, name).weight, 0, turn.matrix)
                _turn(_scaled(root, name).bias, 0, turn.matrix)
            elif id(_layer(root, name).weight) not in done:
                _turn(_layer(root, name).weight, 1, turn.matrix)
                done.add(id(_layer(root, name).weight))
    for turn in turns:
        for norm in turn.stream.norms:
            for neutral, tensor in ((1.0, norm.weight), (0.0, norm.bias)):
                if tensor is not None:
                    tensor_at(root, tensor).fill_(neutral)


@torch.no_grad()
def rotate_heads(root: nn.Module, heads: ValueHeads, matrix: Float[Tensor, "size size"]) -> None:
    """Rotate what each head of the value layer writes, and undo it in the output layer."""
    value, out = _scaled(root, heads.value), _scaled(root, heads.out)
    for rows in heads.rows:
        for tensor in (value.weight, value.bias):
            if tensor is not None:
                tensor[rows] = (matrix.T @ tensor[rows].double()).to(tensor.dtype)
    for columns in heads.columns:
        out.weight[:, columns] = (out.weight[:, columns].double() @ matrix).to(out.weight.dtype)


def tensor_at(root: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name."""
    path, _, attribute = name.rpartition(".")
    return cast("Tensor", getattr(root.get_submodule(path), attribute))


def tied_readers(root: nn.Module, stream: Stream) -> set[str]:
    """Readers of the stream that share their weight with another layer."""
    owners = Counter(id(m.weight) for m in root.modules() if isinstance(m, LAYERS))
    return {name for name in stream.readers if owners[id(_layer(root, name).weight)] > 1}


def inserts(root: nn.Module, stream: Stream) -> bool:
    """Whether a layer has to be put in where the stream is left or read."""
    behind_norms = any(stream.readers[name] != PLAIN for name in tied_readers(root, stream))
    return bool(stream.exits) or behind_norms


def sharing_obstacles(root: nn.Module, stream: Stream) -> Iterator[str]:
    """What is shared with something that is not rotated alike."""
    tensors = Counter(id(p) for _, p in root.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, LAYERS):
            names.setdefault(id(module.weight), []).append(name)
    turned_alike = {name for name, kind in stream.writers.items() if kind == "embedding"} | set(
        stream.readers
    )
    writes = {name for name, kind in stream.writers.items() if kind == "rows"}
    for name in stream.layers:
        layer = _layer(root, name)
        others = names[id(layer.weight)]
        if len(others) > 1 and (name in writes or not set(others) <= turned_alike):
            yield f"layer {name!r} shares its weight with others"
        bias = None if isinstance(layer, nn.Embedding) else layer.bias
        if bias is not None and tensors[id(bias)] > 1:
            yield f"layer {name!r} shares its bias with others"
    parameters = [name for name, kind in stream.writers.items() if kind == "parameter"]
    for name in (*parameters, *_norm_tensors(stream)):
        if tensors[id(tensor_at(root, name))] > 1:
            yield f"parameter {name!r} has several owners"


def _norm_tensors(stream: Stream) -> list[str]:
    return [name for affine in stream.norms for name in (affine.weight, affine.bias) if name is not None]


def _layer(root: nn.Module, name: str) -> Layer:
    return cast("Layer", root.get_submodule(name))


def _scaled(root: nn.Module, name: str) -> Scaled:
    return cast("Scaled", root.get_submodule(name))


def _turn(tensor: Tensor | None, axis: int, matrix: Float[Tensor, "width width"]) -> None:
    if tensor is not None:
        tensor.copy_((tensor.double().movedim(axis, -1) @ matrix).movedim(-1, axis))


def _take_over(layer: Scaled, affine: Affine, norms: Mapping[str, Tensor]) -> None:
    """Multiply columns by a norm's weight, and add what its bias makes to the layer's bias."""
    weight = layer.weight.double()
    if affine.bias is not None:
        constant = weight.reshape(*weight.shape[:2], -1).sum(-1) @ norms[affine.bias]
        before = torch.zeros(()) if layer.bias is None else layer.bias
        layer.bias = nn.Parameter((before + constant).to(layer.weight.dtype))
    if affine.weight is not None:
        layer.weight.copy_((weight.movedim(1, -1) * norms[affine.weight]).movedim(-1, 1))


def _insert(graph: fx.GraphModule, turn: Turn, norms: Mapping[str, Tensor]) -> None:
    """A layer that rotates back before each output, and one that stands for the norm before a tied reader."""
    made: dict[tuple[fx.Node, Affine], fx.Node] = {}
    for node, source, affine in turn.stream.exits:
        if (source, affine) not in made:
            back = _between(turn, affine, norms, rotated=False)
            made[source, affine] = _call(graph, f"unrotated_{source.name}", back, source, node)
        node.replace_input_with(source, made[source, affine])
    for name in sorted(tied_readers(graph, turn.stream)):
        affine = turn.stream.readers[name]
        for node in [n for n in graph.graph.nodes if n.op == "call_module" and n.target == name]:
            source = node.all_input_nodes[0]
            if affine != PLAIN:
                norm = _between(turn, affine, norms, rotated=True)
                node.replace_input_with(source, _call(graph, f"norm_before_{node.name}", norm, source, node))
    graph.graph.lint()
    graph.recompile()


def _call(graph: fx.GraphModule, name: str, layer: nn.Linear, source: fx.Node, before: fx.Node) -> fx.Node:
    graph.add_submodule(name, layer)
    with graph.graph.inserting_before(before):
        node = graph.graph.call_module(name, (source,))
    node.meta = dict(source.meta)
    return node


def _between(turn: Turn, affine: Affine, norms: Mapping[str, Tensor], *, rotated: bool) -> nn.Linear:
    """A linear layer from the rotated stream to a norm's output, itself rotated or as it was."""
    width, matrix = turn.stream.width, turn.matrix
    gain = (
        torch.ones(width, dtype=torch.float64)
        if affine.weight is None
        else norms[affine.weight].expand(width)
    )
    after = matrix if rotated else torch.eye(width, dtype=torch.float64)
    layer = nn.Linear(width, width, bias=affine.bias is not None)
    layer.weight.copy_(((matrix.T * gain) @ after).T)
    if affine.bias is not None:
        layer.bias.copy_(norms[affine.bias] @ after)
    return layer
