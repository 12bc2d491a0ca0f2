"""A model on which int8 is slower is refused: exit code 3, the reason, nothing under the name asked for."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import grouped, newcomer, rivals
from benchmarks.claims import FLOAT, Check, Claim, Context, Outcome
from benchmarks.float_export import export_float
from benchmarks.rivals import ONNXRUNTIME
from benchmarks.timing import loading, only, timed
from flyweight.evaluate.timing import speedup

REASON = "slower"

VARIANTS = (
    {"name": "quantize_static", "mode": "static", "calibrator": "MinMax", "format": "QDQ"},
    {"name": "quantize_dynamic", "mode": "dynamic", "per_channel": True},
)


def run(context: Context) -> Outcome:
    """That int8 is slower here, by ONNX Runtime's own files, and that ours is refused for it."""
    speeds, versions = _rival_speeds(context)
    attempt = newcomer.compress(
        [
            "benchmarks/grouped.py:network",
            "--data", "benchmarks/grouped.py:load",
            "--technique", "static_int8",
            "--max-drop", "99%",  # so that speed is the only thing left to refuse it for
        ],
        out=context.work / "ours",
        shared=context.shared,
    )  # fmt: skip
    checks = (
        Check(what="speed over fp32 of int8 files that ONNX Runtime makes", ours=None, rivals=speeds),
        _yes("all of them are slower than fp32", max(speeds.values()) < 1),
        _yes("ends with exit code 3", attempt.exit_code == newcomer.REFUSED),
        _yes(f"the reason says it is {REASON}", REASON in attempt.message),
        _yes("nothing is left under the name asked for", not attempt.out.exists()),
    )
    return Outcome(checks=checks, notes=(attempt.last_line(),), versions=versions)


def _yes(what: str, held: bool) -> Check:
    return Check(what=f"{what} (1 is yes)", ours=float(held), bar=1.0)


def _rival_speeds(context: Context) -> tuple[dict[str, float], dict[str, str]]:
    """Speed over fp32 of the files ONNX Runtime makes without a word, below 1 is slower; and its versions."""
    work = context.work / "rivals"
    work.mkdir()
    images, _ = grouped.load()["train"]
    original = work / "fp32.onnx"
    example = {"input": torch.from_numpy(images[:2])}
    export_float(grouped.network(), example, original, axes={0: "batch"})
    job = {"model": str(original), "out": str(work), "variants": VARIANTS}
    answer = rivals.run(ONNXRUNTIME, job, arrays={"input": images}, work=work)
    files = {FLOAT: original} | {name: Path(path) for name, path in answer["files"].items()}
    loads = {name: loading(path, context.threads, only(images[:1])) for name, path in files.items()}
    samples = timed(loads, seconds=2 if context.quick else 10)
    speeds = {name: speedup(samples[FLOAT], samples[name]).value for name in answer["files"]}
    return speeds, answer["versions"]


CLAIM = Claim(
    "refuses_slower",
    "A model on which int8 is slower is refused, with the reason, and nothing is shipped as a success.",
    "exit code 3; the reason named; no file under the name asked for",
    run,
)
