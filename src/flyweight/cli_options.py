"""Options of the commands in groups: dataclasses whose fields typer reads; keys as in flyweight.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, final

import typer

from flyweight import catalog
from flyweight.cli_values import factor, number_or_numbers, pairs, side
from flyweight.planner.candidates import JOIN
from flyweight.recover.settings import TrainingSettings
from flyweight.settings import DEFAULT_CALIBRATION_SIZE, DEFAULT_SECONDS, Settings
from flyweight.settings_file import (
    DEFAULT_FILE,
    NEEDED,
    check_value,
    nearest,
    read_settings_file,
    settings_of,
)

_PREPARATION, _GOAL, _MEASUREMENT = "Preprocessing", "What to reach, and how", "Measurement"
_TRAINING = "Training afterwards"


@final
@dataclass(frozen=True, kw_only=True)
class Named:
    """The model."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="file.py:factory, package.module:name, or a Hugging Face folder or id."
        ),
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        return _given(self)


@final
@dataclass(frozen=True, kw_only=True)
class NamedOrMade:
    """The model, or an artifact of one."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder that compress or export wrote; or file.py:factory, package.module:name, or a "
            "Hugging Face folder or id.",
        ),
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        return _given(self)


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """The data, what they are for, and what the model needs to be made."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="Images in folders by class; .npz, .csv, .jsonl, ...; or file.py:loader."
        ),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="classification (default), similarity, regression, or file.py:metric; see docs/tasks.md.",
        ),
    ] = None
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="The model's classes in the order of its outputs, as close,ok,open; by default as the model "
            "names them, else the labels in alphabetical or numerical order.",
        ),
    ] = None
    weights: Annotated[
        str | None, typer.Option("--weights", help="A .safetensors file for what the factory makes.")
    ] = None
    model_arguments: Annotated[
        list[str] | None,
        typer.Option("--model-arg", metavar="NAME=VALUE", help="Argument of the factory; repeatable."),
    ] = None
    top_k: Annotated[int | None, typer.Option("--top-k", help="Right is among the k largest outputs.")] = None
    inputs: Annotated[
        list[str] | None, typer.Option("--input-column", help="Column of the data to read; repeatable.")
    ] = None
    target: Annotated[str | None, typer.Option("--target-column", help="Column of the labels.")] = None
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="Column whose values are compared one by one; repeatable."),
    ] = None
    calibration_size: Annotated[
        int | None,
        typer.Option(
            help=f"Examples to measure ranges of activations on; {DEFAULT_CALIBRATION_SIZE} by default."
        ),
    ] = None
    evaluation_size: Annotated[
        int | None, typer.Option(help="Evaluation examples used; all if left out.")
    ] = None
    evaluation_fraction: Annotated[
        float | None,
        typer.Option(help="Part of unsplit data held out for evaluation, as 0.3; 0.25 by default."),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Of the split of unsplit data; 0 by default.")] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        named = {} if self.classes is None else {"classes": [c.strip() for c in self.classes.split(",")]}
        return (
            _given(self, without=("model_arguments", "top_k", "classes"))
            | named
            | {
                "model_arguments": pairs(self.model_arguments, "--model-arg"),
                "task_settings": {} if self.top_k is None else {"top_k": self.top_k},
            }
        )


@final
@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Preprocessing, which ships with the artifact."""

    resize: Annotated[
        str | None,
        typer.Option(help="Shortest side, or HEIGHTxWIDTH, in pixels.", rich_help_panel=_PREPARATION),
    ] = None
    crop: Annotated[
        str | None,
        typer.Option(help="Side, or HEIGHTxWIDTH, of the middle kept.", rich_help_panel=_PREPARATION),
    ] = None
    rescale: Annotated[
        str | None,
        typer.Option(help="Factor on every value, as 1/255 or 0.5.", rich_help_panel=_PREPARATION),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            help="Subtracted: a number, or one a channel: 0.49,0.48,0.45.", rich_help_panel=_PREPARATION
        ),
    ] = None
    std: Annotated[str | None, typer.Option(help="Divided by, as --mean.", rich_help_panel=_PREPARATION)] = (
        None
    )
    normalize: Annotated[
        str | None,
        typer.Option(help="imagenet: its mean and std, of pixels in 0..1.", rich_help_panel=_PREPARATION),
    ] = None
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A tokenizer.json, for models from your own code.", rich_help_panel=_PREPARATION),
    ] = None
    max_length: Annotated[
        int | None, typer.Option(help="Tokens kept of one text.", rich_help_panel=_PREPARATION)
    ] = None
    preprocess: Annotated[
        list[str] | None,
        typer.Option(
            "--preprocess",
            metavar="KEY=VALUE",
            help="Any other key, such as channels_last=true; repeatable.",
            rich_help_panel=_PREPARATION,
        ),
    ] = None

    def values(self) -> dict[str, object]:
        """``{"preprocessing": {...}}``."""
        if self.normalize not in (None, "imagenet"):
            raise typer.BadParameter(f"imagenet is known, got {self.normalize!r}", param_hint="--normalize")
        declared = pairs(self.preprocess, "--preprocess")
        declared |= dict.fromkeys(("mean", "std"), self.normalize) if self.normalize else {}
        declared |= _given(
            self, without=("preprocess", "normalize", "mean", "std", "rescale", "resize", "crop")
        )
        declared |= {} if self.rescale is None else {"rescale": factor(self.rescale, "--rescale")}
        for key, text in (("mean", self.mean), ("std", self.std)):
            declared |= {} if text is None else {key: number_or_numbers(text, f"--{key}")}
        for key, text in (("resize", self.resize), ("crop", self.crop)):
            declared |= {} if text is None else {key: side(text, f"--{key}")}
        return {"preprocessing": declared}


@final
@dataclass(frozen=True, kw_only=True)
class Goal:
    """The budget."""

    max_size: Annotated[
        str | None, typer.Option(help="All files, as 25MB, 300kB, 1.5MiB.", rich_help_panel=_GOAL)
    ] = None
    max_latency: Annotated[
        str | None, typer.Option(help="Median of one call, as 15ms, 200us.", rich_help_panel=_GOAL)
    ] = None
    max_drop: Annotated[
        str | None,
        typer.Option(help="Of the metric, as 0.5% or 0.005; 1% if left out.", rich_help_panel=_GOAL),
    ] = None
    max_ram: Annotated[
        str | None, typer.Option(help="Peak memory of the running model, as 80MB.", rich_help_panel=_GOAL)
    ] = None
    max_energy: Annotated[
        str | None,
        typer.Option(help="Of one example, where it can be measured, as 5mJ.", rich_help_panel=_GOAL),
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        return _given(self)


@final
@dataclass(frozen=True, kw_only=True)
class Methods:
    """The techniques that may be used, and their settings."""

    techniques: Annotated[
        list[str] | None,
        typer.Option(
            "--technique",
            help="Tried in this order; repeatable. Names joined by + are one plan, each in its own stage. "
            "See flyweight techniques.",
            rich_help_panel=_GOAL,
        ),
    ] = None
    bits: Annotated[int | None, typer.Option(help="Of one weight.", rich_help_panel=_GOAL)] = None
    granularity: Annotated[
        str | None, typer.Option(help="Of scales: tensor, channel or group.", rich_help_panel=_GOAL)
    ] = None
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale.", rich_help_panel=_GOAL)
    ] = None
    extra: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting of the technique; repeatable.",
            rich_help_panel=_GOAL,
        ),
    ] = None
    plan: Annotated[
        str | None,
        typer.Option(help="A plan.json to carry out instead of techniques.", rich_help_panel=_GOAL),
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        named = ("bits", "granularity", "group_size")
        chosen = pairs(self.extra, "--set") | _given(self, without=_all_but(self, named))
        return _given(self, without=(*named, "extra")) | {"technique_settings": chosen}


@final
@dataclass(frozen=True, kw_only=True)
class Learning:
    """How the compressed model is trained."""

    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Passes over the training data, in which the compressed model learns from the original; 0, "
            "the default, trains nothing.",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    train_seconds: Annotated[
        float | None, typer.Option(help="Time given to each training.", rich_help_panel=_TRAINING)
    ] = None
    tune: Annotated[
        str | None,
        typer.Option(
            help="all (default), or scales: keep the codes; train scales, norms and biases.",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    learning_rate: Annotated[float | None, typer.Option(help="The highest.", rich_help_panel=_TRAINING)] = (
        None
    )
    augment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Images changed at random: crop=4 shifts them by up to 4 pixels, flip=true mirrors them; "
            "repeatable.",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    training: Annotated[
        list[str] | None,
        typer.Option(
            "--training",
            metavar="KEY=VALUE",
            help="Any other key of docs/training.md, such as optimizer=adamw; repeatable.",
            rich_help_panel=_TRAINING,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with training that was interrupted.", rich_help_panel=_TRAINING),
    ] = False

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        others = pairs(self.training, "--training")
        known = [field.name for field in fields(TrainingSettings)]
        unknown = next((name for name in others if name not in known), None)
        if unknown is not None:
            raise typer.BadParameter(
                f"no setting is called {unknown!r}; {nearest(unknown, known)}", param_hint="--training"
            )
        augment = {"augment": pairs(self.augment, "--augment")} if self.augment else {}
        resume = {"resume": True} if self.resume else {}
        return others | _given(self, without=("augment", "training", "resume")) | augment | resume


@final
@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A plan for `export`."""

    plan: Annotated[
        str | None, typer.Option(help="A plan.json to carry out; none exports the model as it is.")
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        return _given(self)


@final
@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where the file runs."""

    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime (default) or openvino.", rich_help_panel=_MEASUREMENT)
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of the runtime; 0, the default, is all cores.", rich_help_panel=_MEASUREMENT
        ),
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        return _given(self)


@final
@dataclass(frozen=True, kw_only=True)
class Timing:
    """How its speed is measured."""

    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Examples in one timed call; 1 by default.", rich_help_panel=_MEASUREMENT),
    ] = None
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help=f"Given to the comparison of latencies; {DEFAULT_SECONDS:g} by default. At most 5000 calls "
            "are timed.",
            rich_help_panel=_MEASUREMENT,
        ),
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        return _given(self)


@final
@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where the result goes, and the file that holds the settings."""

    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder to write.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there.")] = False
    config: Annotated[
        Path | None,
        typer.Option(help=f"Settings file; ./{DEFAULT_FILE} if no MODEL is given. Flags come first."),
    ] = None

    def values(self) -> dict[str, object]:
        """What was given, by key."""
        return _given(self, without=("overwrite", "config")) | ({"overwrite": True} if self.overwrite else {})


@final
@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What is printed."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False


def assembled(groups: Sequence[Mapping[str, object]], config: Path | None = None) -> Settings:
    """Settings of a file, overridden by what was given on the command line.

    Args:
        groups: Values by key; those of mappings are joined.
        config: The file; None is ./flyweight.yaml where no model is given and it is there.

    Raises:
        BadParameter: A flag has a wrong value, or something needed is missing.
        InputError: The file cannot be used.
    """
    given: dict[str, object] = {}
    for group in groups:
        given |= {key: _checked(key, value) for key, value in group.items()}
    if config is None and "model" not in given and Path(DEFAULT_FILE).is_file():
        config = Path(DEFAULT_FILE)
    values: dict[str, Any] = read_settings_file(config) if config is not None else {}
    for key, value in given.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, Mapping) else value
    missing = next((key for key in NEEDED if not values.get(key)), None)
    if missing is not None:
        raise typer.BadParameter(f"no {missing} is given: name {NEEDED[missing]}")
    _check_names(values)
    return settings_of(values)


def check_runtime(name: str, formats: Sequence[str] = ()) -> None:
    """Raise BadParameter unless the runtime runs one of the formats (() is all that can be written)."""
    formats = formats or catalog.names("exporter")
    known = catalog.names("runtime")
    if name in known and set(formats) & set(catalog.get("runtime", name).formats):
        return
    able = [other for other in known if set(formats) & set(catalog.get("runtime", other).formats)]
    no = (
        f"{name} does not run {'/'.join(formats)} files"
        if name in known
        else f"no runtime is called {name!r}"
    )
    raise typer.BadParameter(f"{no}; {nearest(name, able)}", param_hint="--runtime")


def check_name(group: catalog.Group, name: str) -> None:
    """Raise BadParameter, with the nearest name, unless the catalog holds ``name``."""
    known = catalog.names(group)
    if name not in known:
        raise typer.BadParameter(f"no {group} is called {name!r}; {nearest(name, known)}")


def _check_names(values: Mapping[str, Any]) -> None:
    for name in values.get("techniques", ()):
        for part in name.split(JOIN):
            check_name("technique", part)
    check_name("exporter", values.get("format", "onnx"))
    if ":" not in values.get("task", ""):
        check_name("task", values.get("task", "classification"))


def _checked(key: str, value: object) -> Any:
    try:
        return check_value(key, value)
    except ValueError as error:
        raise typer.BadParameter(
            str(error), param_hint=_FLAGS.get(key, f"--{key.replace('_', '-')}")
        ) from error


def _given(group: Any, *, without: Sequence[str] = ()) -> dict[str, object]:
    """The fields that were given, by name."""
    named = {field.name: getattr(group, field.name) for field in fields(group) if field.name not in without}
    return {name: value for name, value in named.items() if value is not None and value != []}


def _all_but(group: Any, names: Sequence[str]) -> list[str]:
    return [field.name for field in fields(group) if field.name not in names]


_FLAGS = {
    "techniques": "--technique",
    "inputs": "--input-column",
    "target": "--target-column",
    "model": "MODEL",
}
