"""A model as a graph whose layers are still layers.

`torch.export` writes every layer as an operator on loose weights. `capture` turns those that came from a
standard layer back into calls of that layer under its own name, so that all techniques work on a graph as on
the user's class.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn.utils import fusion

from flyweight.errors import UnsupportedError
from flyweight.measure.agreement import ROUNDING, relative_error, unfused_attention
from flyweight.measure.functional import without_changes_in_place
from flyweight.model import Model, copied, tensors_of
from flyweight.tensors.encoded import EncodedLayer, encoded_layers, exchange, has_own_code

ATEN = torch.ops.aten
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_CLAMPS = frozenset(
    {
        ATEN.clamp.default,
        ATEN.clamp_.default,
        ATEN.clip.default,
        ATEN.clip_.default,
        ATEN.clamp_min.default,
        ATEN.clamp_min_.default,
    }
)

# operator -> (position of its weight, position of its input, modules it is the body of)
_LAYER_OPERATORS: Mapping[Any, tuple[int, int, tuple[type[nn.Module], ...]]] = {
    ATEN.linear.default: (1, 0, (nn.Linear,)),
    ATEN.conv1d.default: (1, 0, (nn.Conv1d,)),
    ATEN.conv1d.padding: (1, 0, (nn.Conv1d,)),
    ATEN.conv2d.default: (1, 0, (nn.Conv2d,)),
    ATEN.conv2d.padding: (1, 0, (nn.Conv2d,)),
    ATEN.embedding.default: (0, 1, (nn.Embedding,)),
    ATEN.batch_norm.default: (1, 0, BATCH_NORMS),
}

# What tracing raises on code that it cannot follow; torch's own exceptions are RuntimeErrors.
TRACING_FAILURES = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
)

_DEFAULTS: Mapping[str, int] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}  # of the operators


def dynamic_shapes(model: Model) -> dict[str, dict[int, Any]]:
    """The model's dynamic axes as `torch.export` takes them."""
    automatic = torch.export.Dim.AUTO
    return {name: dict.fromkeys(axes, automatic) for name, axes in model.dynamic_axes.items()}


def doubled(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with every example twice: tracing at batch 1 would fix the batch to 1."""
    return {name: torch.cat([value, value]) for name, value in inputs.items()}


@contextmanager
def quiet_tracer() -> Iterator[None]:
    """Without the tracer's own warnings and log lines, which concern its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def capture(model: Model) -> fx.GraphModule:
    """The model as a graph of layers, by their names, and ATen operators; the model is left as it is.

    Raises:
        UnsupportedError: The model cannot be traced, for instance because its control flow depends on values,
            or the graph computes something else.
    """
    source = copied(model.module).eval()
    encoded = dict(encoded_layers(source))
    for layer in encoded.values():
        exchange(source, layer, layer.layer)
    try:
        with quiet_tracer():
            program = torch.export.export(
                source, (), doubled(model.example_inputs), dynamic_shapes=dynamic_shapes(model), strict=False
            )
    except TRACING_FAILURES as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnsupportedError(
            f"model {model.name!r} cannot be traced by torch.export: {reason}; "
            "rewrite the part of forward() that branches on tensor values"
        ) from error
    check_axes(program, model)
    graph = program.module()
    if not isinstance(graph, fx.GraphModule):
        raise UnsupportedError(f"model {model.name!r}: torch.export gave a {type(graph).__name__}")
    _drop_guards(graph)
    without_changes_in_place(graph)
    for node in list(graph.graph.nodes):
        _restore_layer(graph, node, source)
        _spell_clamp_as_activation(graph, node)
    for name, layer in encoded.items():
        graph.set_submodule(name, layer)
    _tidy(graph)
    check_computes(graph, model, tolerance=ROUNDING)
    return graph


def check_axes(program: torch.export.ExportedProgram, model: Model) -> None:
    """Raise UnsupportedError where tracing fixed the size of an axis that varies."""
    inputs = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for name, axes in model.dynamic_axes.items():
        shape = inputs[name].shape if name in inputs else ()
        fixed = [axis for index, axis in axes.items() if index < len(shape) and is_concrete_int(shape[index])]
        if fixed:
            raise UnsupportedError(
                f"the code of model {model.name!r} fixes the size of axis {fixed[0]!r} of {name!r}, as "
                "int(x.shape[0]) does: compute with x.shape as it is, or with -1"
            )


def check_computes(graph: fx.GraphModule, model: Model, *, tolerance: float) -> None:
    """Raise UnsupportedError where a graph of the model computes something else on its example inputs."""
    inputs = doubled(model.example_inputs)
    with torch.no_grad(), unfused_attention():
        error = relative_error(model.outputs(inputs), tensors_of(graph(**inputs), model.name))
    if not error <= tolerance:
        raise UnsupportedError(
            f"the traced form computes something else than the model {model.name!r} (relative error "
            f"{error:.3g}): its forward() draws random numbers, changes a part of a tensor in place, or does "
            "something else while it is traced"
        )


def fold_batch_norms(graph: fx.GraphModule) -> int:
    """Fold each batch norm into the layer before it, in place; returns how many were folded.

    A batch norm whose input is not read from a convolution or linear layer, or is also read elsewhere, stays.
    """
    folded = 0
    for node in list(graph.graph.nodes):
        norm, before = module_of(graph, node), normalised_layer(graph, node)
        if before is None or norm is None:
            continue
        owner = module_of(graph, before)
        layer = owner.layer if isinstance(owner, EncodedLayer) else owner
        assert layer is not None
        fuse: Callable[[nn.Module, nn.Module], nn.Module] = (
            fusion.fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fusion.fuse_conv_bn_eval  # type: ignore[assignment]
        )
        fused = fuse(layer, norm)
        if isinstance(owner, EncodedLayer):
            owner.layer = fused  # type: ignore[assignment]
        else:
            graph.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
        folded += 1
    _tidy(graph)
    return folded


def normalised_layer(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The call of the layer that can take over the batch norm ``node`` calls; None where there is none."""
    if not isinstance(module_of(graph, node), BATCH_NORMS) or not isinstance(node.args[0], fx.Node):
        return None
    before = node.args[0]
    owner = module_of(graph, before)
    layer = owner.layer if isinstance(owner, EncodedLayer) else owner
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) or len(before.users) != 1:
        return None
    if sum(n.target == before.target for n in graph.graph.nodes if n.op == "call_module") > 1:
        return None  # the layer is called twice: only one of the calls is normalised
    return before


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a node calls, or None."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any batch norm is left."""
    return any(isinstance(m, BATCH_NORMS) for m in module.modules())


def _spell_clamp_as_activation(graph: fx.GraphModule, node: fx.Node) -> None:
    """``clamp(min=0)`` becomes a relu, a clamp between two numbers a hardtanh, which is relu6 from 0 to 6."""
    if node.op != "call_function" or node.target not in _CLAMPS:
        return
    positions = zip(node.target._schema.arguments, node.args, strict=False)
    arguments: dict[str, Any] = {**{a.name: value for a, value in positions}, **node.kwargs}
    low, high = arguments.get("min"), arguments.get("max")
    if not node.meta["val"].is_floating_point() or not isinstance(low, int | float):
        return
    if high is None and not low:
        node.target, node.args = ATEN.relu.default, (node.args[0],)
    elif isinstance(high, int | float):
        node.target, node.args = ATEN.hardtanh.default, (node.args[0], float(low), float(high))
    else:
        return
    node.kwargs = {}


def _drop_guards(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and str(node.target) == "_guards_fn":
            graph.graph.erase_node(node)


def _restore_layer(graph: fx.GraphModule, node: fx.Node, source: nn.Module) -> None:
    if node.op != "call_function" or node.target not in _LAYER_OPERATORS:
        return
    weight_at, input_at, kinds = _LAYER_OPERATORS[node.target]
    weight = node.args[weight_at]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    found = _owner(source, node, str(weight.target), kinds)
    if found is None:
        return
    name, layer = found
    read = node.args[input_at]
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros":
        read = _before_padding(layer, read)
    if read is None or not _same_settings(source, layer, node):
        return
    graph.set_submodule(name, layer)
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(name, (read,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _owner(
    source: nn.Module, node: fx.Node, weight: str, kinds: tuple[type[nn.Module], ...]
) -> tuple[str, nn.Module] | None:
    """First name and layer of what computed ``node`` with the parameter called ``weight``.

    Of several layers that share the parameter it is the one whose forward the operator came from. None where
    the layer computes more than the operator, as a subclass or with hooks: all it does was traced.
    """
    path, _, attribute = weight.rpartition(".")
    if attribute != "weight" or not path:
        return None
    shared = source.get_submodule(path).weight
    owners = [(name, m) for name, m in source.named_modules() if isinstance(m, kinds) and m.weight is shared]
    if len(owners) > 1:
        stack = [str(called) for called, _ in node.meta.get("nn_module_stack", {}).values()]
        caller = source.get_submodule(stack[-1]) if stack else source
        owners = [(name, m) for name, m in owners if m is caller]
    return next(((name, m) for name, m in owners if type(m) in kinds and not has_own_code(m)), None)


def _before_padding(layer: nn.Conv1d | nn.Conv2d, read: object) -> fx.Node | None:
    """What was padded, where ``read`` is padded as a layer pads that does not pad with zeros; else None."""
    if not isinstance(read, fx.Node) or read.target is not ATEN.pad.default or len(read.args) < 3:
        return None
    source, amounts, mode = read.args[:3]
    own = (list(layer._reversed_padding_repeated_twice), layer.padding_mode)
    same = isinstance(amounts, list | tuple) and (list(amounts), mode) == own
    return source if same and isinstance(source, fx.Node) else None


def _same_settings(source: nn.Module, layer: nn.Module, node: fx.Node) -> bool:
    """Whether the operator was called as the layer's own forward calls it."""
    arguments = {a.name: v for a, v in zip(node.target._schema.arguments, node.args, strict=False)}  # type: ignore[union-attr]
    bias = arguments.get("bias")
    if isinstance(bias, fx.Node):
        bias = dict(source.named_parameters(remove_duplicate=False)).get(str(bias.target), bias)
    if bias is not getattr(layer, "bias", None):
        return False
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return True
    own = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    if layer.padding_mode != "zeros":
        own["padding"] = 0
    axes = len(layer.kernel_size)
    return all(
        _on_axes(arguments.get(setting, _DEFAULTS[setting]), axes) == _on_axes(value, axes)
        for setting, value in own.items()
    )


def _on_axes(setting: Any, axes: int) -> list[Any]:
    return list(setting) if isinstance(setting, list | tuple) else [setting] * axes


def _tidy(graph: fx.GraphModule) -> None:
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
