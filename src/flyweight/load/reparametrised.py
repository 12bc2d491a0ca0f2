"""Weights that a module computes from others: weight norm, spectral norm, pruning masks, parametrizations.

For inference each is one tensor. torch's own `remove_parametrizations` is not used: it deletes from a class
that copies of a module share, so that the user's own module would lose its weight.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@torch.no_grad()
def bake(root: nn.Module) -> None:
    """Store every such weight as what it is in eval mode, in place."""
    for module in list(root.modules()):
        _bake_hooks(module)
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)


def _bake_hooks(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            original = f"{hook._tensor_name}_orig"  # removal masks it in place, and another layer may read it
            module._parameters[original] = nn.Parameter(module.get_parameter(original).clone())
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]  # torch has no annotations


def _bake_parametrizations(module: nn.Module) -> None:
    lists = module.get_submodule("parametrizations")
    values = {name: getattr(module, name).detach().clone() for name, _ in lists.named_children()}
    learnt = {name for name, made in lists.named_children() if any(True for _ in made.parameters())}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        if name in learnt:
            setattr(module, name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
