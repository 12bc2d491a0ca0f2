"""The preprocessing a user declares, ``{"resize": 256, "crop": 224, "mean": "imagenet"}``, as steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flyweight.data.column_steps import JoinColumns, SelectColumns
from flyweight.data.examples import Examples
from flyweight.data.image_steps import CenterCrop, DecodeImage, Resize, ToChannelsFirst
from flyweight.data.steps import MAX_SELECTED_COLUMNS, Cast, Columns, Normalize, Rescale, Step, as_array
from flyweight.data.text_steps import Tokenize
from flyweight.data.tokenizer import TokenizerFile, read_json_text
from flyweight.errors import InputError

Kind = Literal["images", "texts", "table", "arrays"]

# Of RGB in 0..1 over ILSVRC-2012, as torchvision's models were trained.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_MAX_LENGTH = 128  # tokens; where neither the user nor the tokenizer's file says

_SCALING = ("rescale", "mean", "std")
_KEYS: Mapping[Kind, tuple[str, ...]] = {
    "images": ("mode", "resize", "interpolation", "crop", *_SCALING),
    "texts": ("tokenizer", "max_length", "padding", "pair", "token_type_ids"),
    "table": ("columns", "integers", "standardize", *_SCALING),
    "arrays": ("channels_last", "resize", "interpolation", "crop", "integers", "standardize", *_SCALING),
}


def kind_of(examples: Examples) -> Kind:
    """Image files, texts, a table of one number a column, or arrays of any shape."""
    values = list(examples.inputs.values())
    if all(_holds(column, Path) for column in values):
        return "images"
    if all(_holds(column, str) for column in values):
        return "texts"
    return "table" if all(np.ndim(column) == 1 for column in values) else "arrays"


def _holds(column: np.ndarray | Sequence[Any], kind: type) -> bool:
    return len(column) > 0 and isinstance(column[0], kind)


def declared_steps(settings: Mapping[str, object], train: Examples) -> tuple[Step, ...]:
    """The steps of ``settings`` for data like ``train``.

    Args:
        settings: Any of these keys.
            Images (files): ``mode`` "RGB" or "L"; ``resize`` shortest side or [height, width] in pixels;
            ``interpolation``; ``crop`` side or [height, width]; then the scaling keys.
            Arrays: ``channels_last`` true for (examples, height, width, channels), or grey without;
            ``resize`` and ``crop`` for uint8 ones; ``integers`` true, or names of inputs that stay int64;
            ``standardize``; scaling keys. With uint8 and ``channels_last`` the artifact takes files too.
            Tables: ``columns`` of the matrix ``x`` (all, if left out), ``integers`` columns that are given
            as int64 under their own names, ``standardize`` true: less the training mean, over its deviation.
            Texts: ``tokenizer`` path of a tokenizer.json; ``max_length`` tokens; ``padding`` "longest" or
            "fixed"; ``pair`` true: two columns are one example; ``token_type_ids`` true.
            Scaling: ``rescale`` factor; ``mean`` and ``std``, a number, one a channel, or "imagenet", which
            implies a rescale of 1/255 unless one is given.
        train: The training split: statistics are taken from it, and from nothing else.

    Raises:
        InputError: A key is unknown, is for another kind of data, or has a wrong value.
    """
    kind = kind_of(train)
    _check_keys(settings, kind)
    builders: Mapping[Kind, Callable[[Mapping[str, object], Examples], tuple[Step, ...]]] = {
        "images": _image_steps,
        "texts": _text_steps,
        "table": _table_steps,
        "arrays": _array_steps,
    }
    try:
        return builders[kind](settings, train)
    except ValueError as error:
        raise InputError(f"preprocessing: {error}") from error


def _check_keys(settings: Mapping[str, object], kind: Kind) -> None:
    known = _KEYS[kind]
    for key in settings:
        if key in known:
            continue
        others = [other for other, keys in _KEYS.items() if key in keys]
        reason = f"is for {' and '.join(others)}, and the data are {kind}" if others else "is unknown"
        raise InputError(f"preprocessing key {key!r} {reason}; known for {kind}: {', '.join(known)}")


def _image_steps(settings: Mapping[str, object], _: Examples) -> tuple[Step, ...]:
    mode = _choice(settings, "mode", ("RGB", "L"))
    return (DecodeImage(mode), *_geometry(settings), ToChannelsFirst(), *_scaling(settings), Cast())


def _array_steps(settings: Mapping[str, object], train: Examples) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = ()
    if _flag(settings, "channels_last"):
        pixels = [
            column
            for column in train.inputs.values()
            if isinstance(column, np.ndarray) and column.dtype == np.uint8
        ]
        if len(pixels) == len(train.inputs):
            steps = (DecodeImage("L" if pixels[0].ndim == 3 or pixels[0].shape[-1] == 1 else "RGB"),)
        steps = (*steps, *_geometry(settings), ToChannelsFirst())
    elif "resize" in settings or "crop" in settings:
        raise InputError("preprocessing: resize and crop need image files or channels_last arrays")
    steps = (*steps, *_joined(train), *_scaling(settings))
    if _flag(settings, "standardize"):
        steps = (*steps, _standardized(steps, train))
    return (*steps, *_casts(settings, train))


def _joined(train: Examples) -> tuple[Step, ...]:
    """Where the data are one matrix, new examples may come as a table of its columns."""
    if len(train.inputs) != 1:
        return ()
    ((name, values),) = train.inputs.items()
    shape = np.shape(values)
    return (JoinColumns(name, shape[1]),) if len(shape) == 2 and 1 <= shape[1] <= MAX_SELECTED_COLUMNS else ()


def _casts(settings: Mapping[str, object], train: Examples) -> tuple[Step, ...]:
    """Casts to float32, and to int64 where ``integers`` says so."""
    integers = settings.get("integers", False)
    names = (
        tuple(train.inputs) if integers is True else () if integers is False else _names(settings, "integers")
    )
    floats = tuple(name for name in train.inputs if name not in names)
    unknown = [name for name in names if name not in train.inputs]
    if unknown:
        raise InputError(
            f"preprocessing: integers names {unknown[0]!r}; the inputs are {', '.join(train.inputs)}"
        )
    casts = (Cast("float32", floats),) if floats else ()
    return (*casts, Cast("int64", names)) if names else casts


def _table_steps(settings: Mapping[str, object], train: Examples) -> tuple[Step, ...]:
    integers = _names(settings, "integers")
    columns = _names(settings, "columns") or tuple(name for name in train.inputs if name not in integers)
    steps: tuple[Step, ...] = (SelectColumns(columns, integers),)
    if integers and any(key in settings for key in (*_SCALING, "standardize")):
        raise InputError(
            "preprocessing: a table with integers columns cannot be scaled here; scale its columns beforehand"
        )
    steps = (*steps, *_scaling(settings))
    return (*steps, _standardized(steps, train)) if _flag(settings, "standardize") else steps


def _text_steps(settings: Mapping[str, object], _: Examples) -> tuple[Step, ...]:
    if not isinstance(settings.get("tokenizer"), str):
        raise InputError(
            "the data are texts: give the path of the model's tokenizer.json as preprocessing key 'tokenizer'"
        )
    text = read_json_text(Path(str(settings["tokenizer"])))
    tokenizer = TokenizerFile.from_json(text)
    file_length, pad_id = _file_settings(text)
    return (
        Tokenize(
            tokenizer=tokenizer,
            max_length=_integer(settings, "max_length", file_length),
            padding=_choice(settings, "padding", ("longest", "fixed")),
            pad_id=pad_id,
            token_type_ids=_flag(settings, "token_type_ids"),
            pair=_flag(settings, "pair"),
        ),
    )


def _file_settings(text: str) -> tuple[int, int]:
    """Largest length and padding id that a tokenizer.json asks for, or the defaults."""
    raw: dict[str, Any] = json.loads(text)
    truncation, padding = raw.get("truncation") or {}, raw.get("padding") or {}
    length, pad_id = truncation.get("max_length", DEFAULT_MAX_LENGTH), padding.get("pad_id")
    if pad_id is None:
        added = {token["content"]: token["id"] for token in raw.get("added_tokens", [])}
        pad_id = added.get("[PAD]", added.get("<pad>", 0))
    return int(length), int(pad_id)


def _geometry(settings: Mapping[str, object]) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = ()
    if "resize" in settings:
        size = settings["resize"]
        interpolation = _choice(settings, "interpolation", ("bilinear", "nearest", "bicubic"))
        steps = (
            Resize(
                _integer(settings, "resize", 0) if isinstance(size, int) else _pair(settings, "resize"),
                interpolation,
            ),
        )
    if "crop" in settings:
        side = settings["crop"]
        height, width = (
            (_integer(settings, "crop", 0),) * 2 if isinstance(side, int) else _pair(settings, "crop")
        )
        steps = (*steps, CenterCrop(height, width))
    return steps


def _scaling(settings: Mapping[str, object]) -> tuple[Step, ...]:
    imagenet = "imagenet" in (settings.get("mean"), settings.get("std"))
    steps: tuple[Step, ...] = ()
    if "rescale" in settings or imagenet:
        (factor,) = _numbers(settings, "rescale", (1 / 255,))
        steps = (Rescale(factor),)
    if "mean" not in settings and "std" not in settings:
        return steps
    mean = IMAGENET_MEAN if settings.get("mean") == "imagenet" else _numbers(settings, "mean", (0.0,))
    std = (
        IMAGENET_STD
        if settings.get("std") == "imagenet"
        else _numbers(settings, "std", IMAGENET_STD if imagenet else (1.0,))
    )
    width = max(len(mean), len(std))
    return (
        *steps,
        Normalize(mean * width if len(mean) == 1 else mean, std * width if len(std) == 1 else std),
    )


def _standardized(steps: tuple[Step, ...], train: Examples) -> Normalize:
    """Mean and standard deviation of the training split after ``steps``, on axis 1; constants get std 1."""
    columns: Columns = train.inputs
    for step in steps:
        columns = step(columns)
    if len(columns) != 1:
        raise InputError(f"preprocessing: standardize takes one input, the data have {', '.join(columns)}")
    name, values = next(iter(columns.items()))
    array = as_array(name, values)
    if array.ndim < 2:
        raise InputError(
            f"preprocessing: standardize needs columns on axis 1; input {name!r} is {array.shape}"
        )
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    mean, std = array.mean(axis=axes, dtype=np.float64), array.std(axis=axes, dtype=np.float64)
    # A constant column has a standard deviation of rounding errors, not of exactly 0.
    constant = std <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return Normalize(tuple(mean.tolist()), tuple(np.where(constant, 1.0, std).tolist()))


def _flag(settings: Mapping[str, object], key: str) -> bool:
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"preprocessing key {key!r} must be true or false, got {value!r:.60}")
    return value


def _integer(settings: Mapping[str, object], key: str, default: int) -> int:
    value = settings.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"preprocessing key {key!r} must be a whole number, got {value!r:.60}")
    return value


def _pair(settings: Mapping[str, object], key: str) -> tuple[int, int]:
    value = settings[key]
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(side) is int for side in value):
        return value[0], value[1]
    raise InputError(
        f"preprocessing key {key!r} must be a whole number of pixels or [height, width], got {value!r:.60}"
    )


def _numbers(settings: Mapping[str, object], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = settings.get(key, default)
    entries = value if isinstance(value, list | tuple) else (value,)
    if (
        not entries
        or not all(type(entry) in (int, float) for entry in entries)
        or (key == "rescale" and len(entries) != 1)
    ):
        wanted = "a number" if key == "rescale" else "a number, a list of numbers, or imagenet"
        raise InputError(f"preprocessing key {key!r} must be {wanted}, got {value!r:.60}")
    return tuple(float(entry) for entry in entries)


def _names(settings: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = settings.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise InputError(f"preprocessing key {key!r} must be a list of names, got {value!r:.60}")
    return tuple(value)


def _choice(settings: Mapping[str, object], key: str, choices: tuple[str, ...]) -> Any:
    value = settings.get(key, choices[0])
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"preprocessing key {key!r} must be one of {', '.join(choices)}, got {value!r:.60}")
    return value
