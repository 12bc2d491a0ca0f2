"""int8 ResNets for CIFAR-10: as accurate as float, smaller, and no slower than ONNX Runtime's own int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cifar10, newcomer, rivals
from benchmarks.claims import FLOAT, OURS, Check, Claim, Context, Outcome, compared
from benchmarks.rivals import ONNXRUNTIME
from benchmarks.timing import loading, only, open_session, speed_checks, timed

MODELS = ("resnet20", "resnet56")
CALIBRATION_IMAGES = 512
BATCH = 250

LARGEST_DROP = 0.001
LEAST_UNCHANGED = 0.99
LEAST_SHRINKING = 3.6

VARIANTS: tuple[dict[str, Any], ...] = (
    {"name": "QDQ MinMax", "mode": "static", "calibrator": "MinMax", "format": "QDQ"},
    {"name": "QDQ Entropy", "mode": "static", "calibrator": "Entropy", "format": "QDQ"},
    {"name": "QDQ Percentile", "mode": "static", "calibrator": "Percentile", "format": "QDQ"},
    {"name": "QOperator MinMax", "mode": "static", "calibrator": "MinMax", "format": "QOperator"},
)


def run(context: Context) -> Outcome:
    """Both models, one after the other."""
    checks: list[Check] = []
    notes: list[str] = []
    versions: dict[str, str] = {}
    for name in MODELS:
        outcome = _one_model(name, context)
        checks += outcome.checks
        notes += outcome.notes
        versions |= outcome.versions
    return Outcome(checks=tuple(checks), notes=tuple(notes), versions=versions)


def _one_model(name: str, context: Context) -> Outcome:
    original = context.data("converted", f"cifar10_{name}.onnx")
    attempt = newcomer.compress(
        [
            f"benchmarks/cifar10.py:{name}",
            "--weights", context.data("converted", f"cifar10_{name}.safetensors"),
            "--data", "benchmarks/cifar10.py:load",
            "--task", "classification",
            "--technique", "static_int8",
        ],
        out=context.work / f"{name}-ours",
        shared=context.shared,
    )  # fmt: skip
    answer = _rivals(original, context.work / f"{name}-rivals", context)
    files = {FLOAT: original} | {k: Path(v) for k, v in answer["files"].items()}
    if attempt.model_file is not None:
        files[OURS] = attempt.model_file
    checks = [*_quality(name, files, context), *_size(name, files, attempt.storage_bytes())]
    checks += [*_speed(name, files, context), attempt.time_check(name)]
    return Outcome(checks=tuple(checks), notes=attempt.notes(name), versions=answer["versions"])


def _rivals(original: Path, work: Path, context: Context) -> dict[str, Any]:
    calibration = cifar10.normalised(cifar10.images(context.shared, "train", sheets=1)[:CALIBRATION_IMAGES])
    job = {"model": str(original), "out": str(work), "variants": VARIANTS[::3] if context.quick else VARIANTS}
    return rivals.run(ONNXRUNTIME, job, arrays={"input": calibration}, work=work)


def _quality(name: str, files: Mapping[str, Path], context: Context) -> list[Check]:
    """Top-1 accuracy, and answers unchanged, against the float file on the same test images."""
    pixels = cifar10.images(context.shared, "test", sheets=1 if context.quick else cifar10.TEST_SHEETS)
    truth = cifar10.labels(context.shared, "test", examples=len(pixels))
    images = cifar10.normalised(pixels)
    answers = {key: _answers(path, images, context.threads) for key, path in files.items()}
    accuracy = {key: float((answer == truth).mean()) for key, answer in answers.items()}
    drop = {key: accuracy[FLOAT] - value for key, value in accuracy.items()}
    same = {key: float((answer == answers[FLOAT]).mean()) for key, answer in answers.items()}
    return [
        compared(f"{name}: accuracy", accuracy),
        compared(f"{name}: drop of accuracy", drop, bar=LARGEST_DROP, direction="at most"),
        compared(f"{name}: answers unchanged", same, bar=LEAST_UNCHANGED),
    ]


def _answers(path: Path, images: np.ndarray, threads: int) -> np.ndarray:
    """(images,) class of the highest output."""
    session = open_session(path, threads)
    feed = session.get_inputs()[0].name
    batches = [session.run(None, {feed: images[i : i + BATCH]})[0] for i in range(0, len(images), BATCH)]
    answers: np.ndarray = np.concatenate(batches).argmax(axis=1)
    return answers


def _size(name: str, files: Mapping[str, Path], storage_bytes: int | None) -> list[Check]:
    """The float file over the model file, and over all files."""
    original = files[FLOAT].stat().st_size
    shrinking = {key: original / path.stat().st_size for key, path in files.items()}
    with_manifest = None if storage_bytes is None else original / storage_bytes
    return [
        compared(f"{name}: times smaller than fp32, model file", shrinking, bar=LEAST_SHRINKING),
        Check(what=f"{name}: times smaller than fp32, with manifest", ours=with_manifest),
    ]


def _speed(name: str, files: Mapping[str, Path], context: Context) -> tuple[Check, Check]:
    """Batch 1, all files in one loop."""
    image = cifar10.normalised(cifar10.images(context.shared, "test", sheets=1)[:1])
    loads = {key: loading(path, context.threads, only(image)) for key, path in files.items()}
    samples = timed(loads, seconds=3 if context.quick else 30)
    return speed_checks(name, samples, rivals=[key for key in files if key not in (FLOAT, OURS)])


CLAIM = Claim(
    "cifar_int8",
    "CIFAR-10 ResNets become int8 files that answer as before and beat ONNX Runtime's own in size and speed.",
    "drop at most 0.1 points; 99 % of answers unchanged; 3.6 times smaller; at least as fast; in two minutes",
    run,
)
