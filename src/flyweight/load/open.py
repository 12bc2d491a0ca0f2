"""From what the settings call the model to a `Model` that was run once on the data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.core.protocols import Task
from flyweight.data.checks import check_targets
from flyweight.data.declared import kind_of
from flyweight.data.examples import Examples, Splits
from flyweight.data.preprocessing import Preprocessing, build
from flyweight.data.text_steps import Tokenize
from flyweight.errors import InputError
from flyweight.load.classes import check_count, in_model_order
from flyweight.load.huggingface import Pretrained, fetch, load_folder
from flyweight.load.pytorch import load_module, prepared
from flyweight.load.source import check_model_source
from flyweight.measure.agreement import ROUNDING, relative_error
from flyweight.model import Model, copied
from flyweight.settings import Settings
from flyweight.tasks.classification import Classification
from flyweight.user_code import is_spec, reason

SEQUENCE = "sequence"  # name of the axis of tokens
EXAMPLE_TOKENS = 16  # of example inputs; the MACs of a text model are counted at this length

_CHANNEL_COUNTS = (1, 3, 4)  # of grey images, of colours, of colours with transparency
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@final
@dataclass(frozen=True, eq=False)
class Opened:
    """A model and the data in its terms.

    Attributes:
        model: With preprocessing, and example inputs from the evaluation data.
        splits: Targets are in the model's order of classes.
    """

    model: Model
    splits: Splits


def open_model(settings: Settings, splits: Splits, task: Task, *, module: nn.Module | None = None) -> Opened:
    """The model, its preprocessing, and the data in its terms; it ran on two examples.

    Args:
        settings: Name the model, its weights and arguments, and what preprocessing is declared.
        splits: Examples the model is for.
        task: What its outputs are for.
        module: The model itself; it is copied, and ``settings.model`` is only its name.

    Raises:
        InputError: The model cannot be opened, or does not fit the data or the task.
        UnsupportedError: It is of a kind that is not supported.
    """
    pretrained = _pretrained(settings, splits, task, module)
    splits = in_model_order(splits, settings.classes or pretrained.classes)
    queries = task.queries(splits)
    preprocessing = build({**pretrained.preprocessing, **settings.preprocessing}, splits)
    _check_one_text(preprocessing, queries)
    arrays = preprocessing(queries.take(np.array([0, min(1, len(queries) - 1)])).inputs)
    preprocessing, inputs = _matched(preprocessing, _tensors(arrays), pretrained.module, settings.model)
    model = Model(
        name=_name(settings.model),
        module=pretrained.module,
        example_inputs=_examples(inputs, preprocessing),
        dynamic_axes={name: {1: SEQUENCE} for name in inputs} if _varies(preprocessing) else {},
        preprocessing=preprocessing,
    )
    _check(model, inputs, splits, task, named=settings.classes)
    return Opened(model, splits)


def _pretrained(settings: Settings, splits: Splits, task: Task, module: nn.Module | None) -> Pretrained:
    spec = settings.model
    if module is not None:
        return Pretrained(module=prepared(copied(module), spec), preprocessing={})
    check_model_source(settings)
    if is_spec(spec):
        weights = None if settings.weights is None else Path(settings.weights)
        loaded = load_module(spec, weights, arguments=settings.model_arguments)
        return Pretrained(module=loaded, preprocessing={})
    return _from_folder(settings, splits, task)


def _from_folder(settings: Settings, splits: Splits, task: Task) -> Pretrained:
    folder = Path(settings.model)
    if not folder.exists():
        folder = fetch(settings.model)
    is_classification = isinstance(task, Classification)
    pretrained = load_folder(folder, pairs=is_classification and len(splits.evaluation.inputs) == 2)
    if is_classification and pretrained.embeds:
        raise InputError(f"{folder} is an encoder without classes; it fits --task similarity")
    _check_kind(settings.model, pretrained, splits.train)
    if kind_of(splits.train) == "arrays" and not pretrained.embeds:
        return Pretrained(
            module=pretrained.module,
            preprocessing=_for_arrays(pretrained.preprocessing, splits.train),
            classes=pretrained.classes,
        )
    return pretrained


def _check_kind(model: str, pretrained: Pretrained, train: Examples) -> None:
    """Raise InputError where the model of a folder is given data of another kind."""
    takes, given = "texts" if "tokenizer" in pretrained.preprocessing else "images", kind_of(train)
    if given not in (takes, "arrays") or (given == "arrays" and pretrained.embeds):
        raise InputError(
            f"{model} takes {takes}, and the data are {'a table' if given == 'table' else given}"
        )


def _check_one_text(preprocessing: Preprocessing, queries: Examples) -> None:
    step = next((step for step in preprocessing.steps if isinstance(step, Tokenize)), None)
    if step is not None and not step.pair and len(queries.inputs) == 2:
        raise InputError(
            f"the tokenizer takes one text column, the data have {', '.join(queries.inputs)}; choose one "
            "with --input-column, or encode both as one example with --preprocess pair=true"
        )


def _for_arrays(preprocessing: Mapping[str, object], train: Examples) -> Mapping[str, object]:
    """Of pixels (uint8, channels last) the same as of files; other arrays are taken as they are."""
    pixels = all(isinstance(v, np.ndarray) and v.dtype == np.uint8 for v in train.inputs.values())
    return {**preprocessing, "channels_last": True} if pixels else {}


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def _name(spec: str) -> str:
    """``resnet20`` of ``nets.py:resnet20``, ``minilm`` of ``models/minilm``."""
    return spec.rpartition(":")[2] if is_spec(spec) else Path(spec).resolve().name or spec


def _matched(
    preprocessing: Preprocessing, inputs: dict[str, Tensor], module: nn.Module, spec: str
) -> tuple[Preprocessing, dict[str, Tensor]]:
    """Preprocessing whose outputs have the names of ``forward``'s parameters, and its outputs under them.

    A single input is renamed; several are matched by name.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind not in _VARIADIC]
    required = [p.name for p in named if p.default is p.empty]
    if not named:
        raise InputError(f"forward() of {spec} names no parameter; give its inputs names")
    if len(inputs) == 1 and len(required) <= 1:
        (tensor,) = inputs.values()
        name = required[0] if required else named[0].name
        return (preprocessing if name in inputs else preprocessing.renamed_to(name)), {name: tensor}
    missing = [name for name in required if name not in inputs]
    strange = [name for name in inputs if name not in {p.name for p in named}]
    if missing or strange:
        raise InputError(
            f"forward() of {spec} takes {', '.join(p.name for p in named)}; the data give "
            f"{', '.join(inputs)}; name the columns as the parameters, or choose them with --input-column"
        )
    return preprocessing, inputs


def _varies(preprocessing: Preprocessing) -> bool:
    return any(isinstance(step, Tokenize) and step.padding == "longest" for step in preprocessing.steps)


def _examples(inputs: Mapping[str, Tensor], preprocessing: Preprocessing) -> dict[str, Tensor]:
    """The first example; where lengths vary, `EXAMPLE_TOKENS` of its tokens, repeated as needed."""
    if not _varies(preprocessing):
        return {name: tensor[:1] for name, tensor in inputs.items()}
    kept = inputs["attention_mask"][0].bool()
    return {
        name: torch.from_numpy(np.resize(tensor[:1, kept].numpy(), (1, EXAMPLE_TOKENS)))
        for name, tensor in inputs.items()
    }


def _check(
    model: Model, two: Mapping[str, Tensor], splits: Splits, task: Task, *, named: Sequence[str]
) -> None:
    """Run the model at batch 1 and 2: inputs taken, batch kept, numbers given, and given again."""
    for inputs in (model.example_inputs, two):
        outputs = _run(model, inputs)
        batch = len(next(iter(inputs.values())))
        for output in outputs:
            if output.ndim == 0 or len(output) != batch:
                raise InputError(
                    f"model {model.name!r} gives shape {tuple(output.shape)} for {batch} example(s); "
                    "axis 0 of every output must be the batch"
                )
            if (output.isnan() | output.isposinf()).any():  # minus infinity masks a class
                raise InputError(
                    f"model {model.name!r} gives NaN or infinity for the first evaluation examples; "
                    "check the weights and the preprocessing"
                )
    if not relative_error(outputs, _run(model, two)) <= ROUNDING:
        raise InputError(
            f"model {model.name!r} gives two answers to one input: its forward() draws random numbers "
            "or keeps a state; dropout needs training=self.training"
        )
    if isinstance(task, Classification):
        _check_classes(model, outputs[0], splits, named=named)


def _run(model: Model, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    try:
        return model.outputs(inputs)
    except InputError:
        raise
    except Exception as error:  # whatever the user's forward() raises is told as it is
        _tell_channels_last(model.name, inputs, error)
        shapes = ", ".join(f"{name} {tuple(t.shape)} {str(t.dtype)[6:]}" for name, t in inputs.items())
        raise InputError(
            f"model {model.name!r} cannot run on the data as inputs {shapes}: {reason(error)}; "
            "change the preprocessing or the data"
        ) from error


def _tell_channels_last(model: str, inputs: Mapping[str, Tensor], error: Exception) -> None:
    """Raise InputError where an input looks like images with their channels on the last axis."""
    for name, tensor in inputs.items():
        shape = tuple(tensor.shape)
        if len(shape) == 4 and shape[-1] in _CHANNEL_COUNTS and shape[1] not in _CHANNEL_COUNTS:
            raise InputError(
                f"model {model!r} cannot run on {name} {shape}: the channels seem to come last; "
                "give --preprocess channels_last=true"
            ) from error


def _check_classes(model: Model, output: Tensor, splits: Splits, *, named: Sequence[str]) -> None:
    if output.ndim != 2:
        raise InputError(
            f"model {model.name!r} gives shape {tuple(output.shape)} for 2 examples; "
            "classification needs (batch, classes)"
        )
    check_count(named, output.shape[1])
    check_targets(splits.evaluation, output.shape[1])
