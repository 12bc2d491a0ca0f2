"""Quality of a compressed model in PyTorch, for what no file format holds yet."""

from __future__ import annotations

from flyweight.core.layer import ModelProfile
from flyweight.core.protocols import Task
from flyweight.data.examples import Splits
from flyweight.errors import InputError
from flyweight.evaluate.evaluate import EXAMPLES_A_CALL, evaluate
from flyweight.evaluate.quality import PYTORCH, Chosen, Quality, quality_of
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.progress import SILENT, Progress
from flyweight.run.open import open_runtime
from flyweight.tensors.activation import INTEGER_BITS, ranges_span_batch
from flyweight.tensors.cache import cache_bytes


def reference_quality(
    model: Model,
    task: Task,
    splits: Splits,
    *,
    threads: int = 0,
    told: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> Quality:
    """Of the model itself on the evaluation split.

    Args:
        model: With frozen layers.
        task: Settled on the data.
        splits: In the model's order of classes.
        threads: Of PyTorch; 0 is one for each core.
        told: Further notes.
        progress: Told of the evaluation.

    Raises:
        InputError: The model has no preprocessing, or the data do not fit it.
    """
    if model.preprocessing is None:
        raise InputError(f"model {model.name!r} has no preprocessing, so raw data cannot be given to it")
    scores = evaluate(
        open_runtime(PYTORCH, "module").load(model, threads),
        model.preprocessing,
        task,
        splits,
        batch_size=1 if ranges_span_batch(model.module) else EXAMPLES_A_CALL,
        progress=progress,
    )
    count = len(splits.evaluation)
    chosen = Chosen(task=task, splits=splits, of=count, chosen="none of them calibrated on")
    return quality_of(scores, chosen, splits, (_where(profile(model)), *_on_cache(model), *told))


def _on_cache(model: Model) -> tuple[str, ...]:
    """What a rounded cache takes, where there is one."""
    found = cache_bytes(model.module)
    if found is None:
        return ()
    return (
        f"keys and values that a cache holds take {found.rounded:g} bytes a token, scales included, instead "
        f"of {found.as_float16:g} in float16; no ONNX file holds them",
    )


def _where(made: ModelProfile) -> str:
    """That the number is PyTorch's, and whether it could be another's."""
    narrow = sorted({x.activation_bits for x in made.layers if x.activation_bits < INTEGER_BITS})
    if not narrow:
        return "measured in PyTorch, not on a file"
    widths = " and ".join(map(str, narrow))
    return (
        f"measured in PyTorch, and runnable nowhere else: no ONNX file holds activations of {widths} bits, "
        "and ONNX Runtime has no kernel for them"
    )
