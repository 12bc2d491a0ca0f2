"""PyTorch modules of the user's code, ``file.py:factory`` or ``package.module:name``, and their weights."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flyweight.core.plan import Scalar
from flyweight.errors import InputError, UnsupportedError
from flyweight.load.reparametrised import bake
from flyweight.load.weights import check_finite, load_weights, read_weights
from flyweight.tensors.encoded import LAYERS
from flyweight.user_code import user_object


def load_module(spec: str, weights: Path | None = None, *, arguments: Mapping[str, Scalar]) -> nn.Module:
    """A float32 module on the CPU, in eval mode.

    Args:
        spec: Names a function that returns a module, a class of modules, or a module.
        weights: A safetensors or PyTorch file; None keeps what the module has.
        arguments: Keyword arguments of the function or class.

    Raises:
        InputError: There is no such object, it raises or gives no module, or the weights do not fit.
    """
    with user_object(spec) as found:
        module = found if isinstance(found, nn.Module) else _made(spec, found, arguments)
        if module is found and arguments:
            raise InputError(f"{spec} is a module, not a function that makes one; it takes no arguments")
    if weights is not None:
        load_weights(module, read_weights(weights), str(weights))
    return prepared(module, spec)


def prepared(module: nn.Module, name: str) -> nn.Module:
    """The module on the CPU with float32 parameters, in eval mode; changed in place.

    Reparametrised weights and embeddings with ``max_norm`` get the weights that they would compute with. A
    single layer becomes a sequence of one, as techniques replace layers inside a module.

    Raises:
        InputError: A parameter has no data, or is not finite.
        UnsupportedError: It is TorchScript, or another layer reads an embedding with ``max_norm``.
    """
    script = next((key for key, m in module.named_modules() if isinstance(m, torch.jit.ScriptModule)), None)
    if script is not None:
        raise UnsupportedError(
            f"{name!r} is TorchScript{f' at {script!r}' if script else ''}, whose layers cannot be replaced: "
            "give the Python module that it was made from"
        )
    without_data = next((key for key, tensor in module.named_parameters() if tensor.is_meta), None)
    if without_data is not None:
        raise InputError(f"weight {without_data!r} of {name!r} has no data (meta device); give --weights")
    module = module.to("cpu", torch.float32).eval()
    bake(module)
    check_finite(module, name)
    _apply_max_norms(module)
    return nn.Sequential(module) if isinstance(module, LAYERS) else module


@torch.no_grad()
def _apply_max_norms(module: nn.Module) -> None:
    """Such an embedding shortens rows as it reads them, in its own weight; here all are, once, in place."""
    owners = Counter(id(p) for layer in module.modules() for p in layer.parameters(recurse=False))
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Embedding | nn.EmbeddingBag) or layer.max_norm is None:
            continue
        if owners[id(layer.weight)] > 1:
            raise UnsupportedError(
                f"embedding {name!r} has max_norm, and another layer reads its weight, which changes with "
                "each lookup: give one of them a weight of its own"
            )
        rows = torch.arange(len(layer.weight))
        torch.embedding_renorm_(layer.weight, rows, layer.max_norm, layer.norm_type)
        layer.max_norm = None


def _made(spec: str, factory: Any, arguments: Mapping[str, Scalar]) -> nn.Module:
    if not callable(factory):
        raise InputError(f"{spec} is a {type(factory).__name__}; name a function that returns an nn.Module")
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise InputError(
            f"{spec} cannot be called: {error}; give arguments with --model-arg NAME=VALUE"
        ) from error
    made = factory(**arguments)
    if not isinstance(made, nn.Module):
        raise InputError(f"{spec} returned a {type(made).__name__}; it must return an nn.Module")
    return made
