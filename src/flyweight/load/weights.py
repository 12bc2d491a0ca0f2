"""Weight files into modules: read without running code, every name and shape checked, nothing left unset."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flyweight.errors import InputError

SAFETENSORS_SUFFIX = ".safetensors"
WEIGHT_SUFFIXES = (SAFETENSORS_SUFFIX, ".pt", ".pth", ".bin", ".ckpt")

_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # where checkpoints of training loops keep the weights
_PARALLEL_PREFIX = "module."  # what nn.DataParallel puts before every name
_COUNTER = "num_batches_tracked"  # of batch norms; plays no part in inference
_SHOWN = 3

_CONVERT = (
    "convert it where you trust it: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU.

    Raises:
        InputError: The file is missing, damaged, of another kind, or holds Python objects besides tensors.
    """
    check_weights_file(path)
    suffix = path.suffix.lower()
    if suffix not in WEIGHT_SUFFIXES:
        known = ", ".join(WEIGHT_SUFFIXES)
        raise InputError(f"weights file {path} is of no known kind; name one that ends in {known}")
    if suffix == SAFETENSORS_SUFFIX or _is_safetensors(path):
        return _read_safetensors(path)
    return _unwrapped(_read_pytorch(path), path)


def check_weights_file(path: Path) -> None:
    """Raise InputError unless ``path`` is a file."""
    if path.is_dir():
        raise InputError(f"weights {path} is a folder; name the file in it")
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put ``weights`` into ``module``, in place.

    Counters of batch norms may be missing, and so may names that share their tensor with one that is there.

    Args:
        module: Its own names and shapes are what is expected.
        weights: By name; a prefix ``module.`` of all names is taken off.
        source: What to call them in errors.

    Raises:
        InputError: Names are missing or unexpected, or shapes differ.
    """
    own = module.state_dict()
    given = _without_prefix(weights, own)
    problems = (
        *listed("missing", _missing(own, given)),
        *listed("unexpected", [name for name in given if name not in own]),
        *listed("of another shape", [_shapes(n, given[n], own[n]) for n in own if _differ(n, given, own)]),
    )
    if problems:
        raise InputError(f"{source} does not fit the model: {'; '.join(problems)}")
    module.load_state_dict(given, strict=False)


def check_finite(module: nn.Module, name: str) -> None:
    """Nothing, if every parameter is finite and no buffer holds NaN (masks hold infinities).

    Raises:
        InputError: One does; names the tensor.
    """
    for key, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            what = "NaN" if torch.isnan(weight).any() else "infinity"
            raise InputError(f"weight {key!r} of {name!r} holds {what}; train or convert the model again")
    for key, buffer in module.named_buffers():
        if torch.isnan(buffer).any():
            raise InputError(f"buffer {key!r} of {name!r} holds NaN; train or convert the model again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        if _is_pickle(path):
            raise InputError(f"{path} is a pickle and no safetensors file; {_CONVERT}") from error
        raise InputError(
            f"{path} is damaged, cut short or no safetensors file ({error}); copy or make it again"
        ) from error
    return tensors


def _read_pytorch(path: Path) -> object:
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _is_pickle(path):
            raise InputError(f"{path} is damaged or no PyTorch file; copy or make it again") from error
        raise InputError(
            f"{path} is a pickle with more than tensors in it, and is not run; {_CONVERT}"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged or no PyTorch file ({text}); copy or make it again") from error
    return loaded


def _is_pickle(path: Path) -> bool:
    """Whether the file begins as PyTorch's (a zip) or Python's pickles do."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a header, then the header's brace."""
    with path.open("rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    return brace == b"{" and 8 + length <= path.stat().st_size


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
        if inner and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in inner.items()):
            return dict(inner)
    raise InputError(f"{path} holds no state dict; save model.state_dict() as safetensors")


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixed = bool(weights) and all(name.startswith(_PARALLEL_PREFIX) for name in weights)
    if not prefixed or any(name.startswith(_PARALLEL_PREFIX) for name in own):
        return dict(weights)
    return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in weights.items()}


def _missing(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    filled = {own[name].data_ptr() for name in given if name in own} - {0}  # 0: empty, or without data
    return [
        name
        for name, tensor in own.items()
        if name not in given and not name.endswith(_COUNTER) and tensor.data_ptr() not in filled
    ]


def _differ(name: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return name in given and given[name].shape != own[name].shape


def _shapes(name: str, given: Tensor, own: Tensor) -> str:
    return f"{name} {tuple(given.shape)} (the model has {tuple(own.shape)})"


def listed(what: str, names: Iterable[str]) -> tuple[str, ...]:
    """``("2 missing: a, b",)``, or () for no names; at most three are shown."""
    found = list(names)
    if not found:
        return ()
    more = ", ..." if len(found) > _SHOWN else ""
    return (f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{more}",)
