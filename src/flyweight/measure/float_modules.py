"""What no technique takes: recurrent layers, transposed convolutions, position tables and the like.

Limits: multiply-accumulates are those of matrix products and convolutions with a weight, as
`torch.utils.flop_counter` counts them; other operators on weights (`nn.Bilinear`) count as none.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from flyweight.core.layer import FloatModule
from flyweight.measure.agreement import unfused_attention
from flyweight.model import Model

FLOPS_A_MAC = 2


def float_modules(model: Model, taken: Sequence[nn.Module]) -> tuple[FloatModule, ...]:
    """The modules that read a weight of their own of two or more axes, but for ``taken`` and what is inside.

    One forward pass, and only where there may be such modules.
    """
    known = {id(m) for layer in taken for m in layer.modules()}
    owned = {id(p) for layer in taken for p in layer.parameters()}
    others = {
        name: [p for p in module.parameters(recurse=False) if id(p) not in owned]
        for name, module in model.module.named_modules()
        if id(module) not in known
    }
    weights = {name: [p for p in own if p.dim() > 1] for name, own in others.items()}
    if not any(weights.values()):
        return ()
    counter = _Counter({_place(p): name for name, own in weights.items() for p in own})
    with _plain_operators(), counter:
        model.outputs()
    return tuple(
        FloatModule(
            name=name or type(model.module).__name__,
            kind=type(model.module.get_submodule(name)).__name__,
            weights=sum(p.numel() for p in own),
            macs=counter.flops[name] // FLOPS_A_MAC,
        )
        for name, own in others.items()
        if name in counter.flops
    )


def _place(tensor: Tensor) -> int:
    """The same for a parameter and for every view of it."""
    return tensor.untyped_storage().data_ptr()


@final
class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base has no annotations
    """Adds up floating-point operations by owner of the weight they read; 0 for an owner only looked up.

    Args:
        owners: Place in memory to name.
    """

    def __init__(self, owners: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owners = owners
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        result = func(*args, **named)
        places = [_place(leaf) for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
        owner = next((self._owners[place] for place in places if place in self._owners), None)
        if owner is not None:
            count = flop_registry.get(func.overloadpacket)
            self.flops[owner] += 0 if count is None else count(*args, **named, out_val=result)
        return result


@contextmanager
def _plain_operators() -> Iterator[None]:
    """Without fused kernels for attention and recurrent layers, into which the counter cannot see."""
    with unfused_attention(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")
        with torch.backends.mkldnn.flags(enabled=False):
            yield
