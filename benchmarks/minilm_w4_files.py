"""MiniLM files with every weight in 4 bits, embeddings included: bytes, speed, nearness, beside rivals'."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import minilm, newcomer, rivals
from benchmarks.claims import FLOAT, OURS, Check, Context, compared
from benchmarks.float_export import export_float
from benchmarks.newcomer import Attempt
from benchmarks.rivals import ONNXRUNTIME
from benchmarks.timing import loading, open_session, timed
from flyweight.evaluate.timing import speedup

MEGABYTE = 1e6
MOST_MEGABYTES = 14.7  # what MatMulNBits with its option for embeddings takes
MIXED = "4-bit weights, int8 activations"
MIXED_MOST_MEGABYTES, MIXED_LEAST_SPEED = 19.0, 1.5
TOKENS = 32
PAIRS = 1500  # to calibrate on, and for the command to measure on

FORM = ("--bits", "4", "--group-size", "32")
COMMANDS = {
    OURS: ("--technique", "gptq", *FORM, "--max-latency", "1s"),  # small is what it is for
    MIXED: ("--technique", "gptq+dynamic_activations", *FORM),
}
BLOCKS = {"mode": "blocks", "bits": 4, "block_size": 32, "operators": ["MatMul", "Gather"]}
VARIANTS: tuple[dict[str, Any], ...] = (
    {"name": "MatMulNBits + Gather", "accuracy_level": 0, **BLOCKS},
    {"name": "MatMulNBits + Gather, level 4", "accuracy_level": 4, **BLOCKS},
    {"name": "dynamic int8 per channel", "mode": "dynamic", "per_channel": True},
)


def checks(context: Context) -> tuple[list[Check], tuple[str, ...], dict[str, str]]:
    """What was measured, what the reader must know, and the versions of the rivals."""
    pairs = _unjudged_pairs(context)
    attempts = {name: _compressed(name, [pairs, *words], context) for name, words in COMMANDS.items()}
    files, versions = _rivals(context)
    files |= {name: a.model_file for name, a in attempts.items() if a.model_file is not None}
    notes = [note for name, attempt in attempts.items() for note in attempt.notes(name)]
    found = [*_sizes(files), *_speeds(files, context), *_cosines(files, context)]
    return found, tuple(notes), versions


def _unjudged_pairs(context: Context) -> Path:
    """Pairs of STS-B train without a sentence that is judged."""
    judged = minilm.stsb(context.data("stsb", "stsb-en-dev.csv"))
    known = {*judged.first, *judged.second}
    train = minilm.stsb(context.data("stsb", "stsb-en-train.csv"))
    rows = zip(train.first, train.second, train.gold.tolist(), strict=True)
    file = context.work / "pairs.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([row for row in rows if not known.intersection(row[:2])][:PAIRS])
    return file


def _compressed(name: str, words: Sequence[str | Path], context: Context) -> Attempt:
    data, *options = words
    return newcomer.compress(
        [minilm.model_folder(), "--data", data, "--task", "similarity", *options],
        out=context.work / name.replace(" ", "-"),
        shared=context.shared,
    )


def _rivals(context: Context) -> tuple[dict[str, Path], dict[str, str]]:
    work = context.work / "files"
    work.mkdir()
    original = work / "fp32.onnx"
    export_float(minilm.encoder(), minilm.example(), original, axes=minilm.AXES, exporter="TorchScript")
    job = {"model": str(original), "out": str(work), "variants": VARIANTS}
    answer = rivals.run(ONNXRUNTIME, job, arrays={}, work=work)
    return {FLOAT: original} | {k: Path(v) for k, v in answer["files"].items()}, answer["versions"]


def _sizes(files: Mapping[str, Path]) -> list[Check]:
    size = {name: path.stat().st_size / MEGABYTE for name, path in files.items()}
    return [
        compared("model file, MB", _as_ours(size, OURS), bar=MOST_MEGABYTES, direction="at most"),
        compared(
            f"model file, MB, {MIXED}", _as_ours(size, MIXED), bar=MIXED_MOST_MEGABYTES, direction="at most"
        ),
    ]


def _speeds(files: Mapping[str, Path], context: Context) -> list[Check]:
    feeds = partial(minilm.feeds, encoded=minilm.sentence_of(minilm.tokenizer(), TOKENS))
    loads = {name: loading(path, context.threads, feeds) for name, path in files.items()}
    samples = timed(loads, seconds=5 if context.quick else 40)
    speeds = {name: speedup(samples[FLOAT], times) for name, times in samples.items()}
    values = {name: speed.value for name, speed in speeds.items()}
    mixed = speeds.get(MIXED)
    spread = None if mixed is None else (mixed.low, mixed.high)
    what = f"batch 1, {TOKENS} tokens: speed over fp32"
    return [
        compared(what, _as_ours(values, OURS)),
        compared(f"{what}, {MIXED}", _as_ours(values, MIXED), bar=MIXED_LEAST_SPEED, spread=spread),
    ]


def _cosines(files: Mapping[str, Path], context: Context) -> list[Check]:
    pairs = minilm.stsb(context.data("stsb", "stsb-en-dev.csv"))
    texts = list(dict.fromkeys(pairs.first + pairs.second))[: 100 if context.quick else None]
    tokens = minilm.tokenizer()
    found = {
        name: minilm.embeddings(open_session(path, context.threads), tokens, texts, batch=1)
        for name, path in files.items()
    }
    lost = {name: 1 - float((each * found[FLOAT]).sum(1).mean()) for name, each in found.items()}
    return [
        compared("file: 1 - cosine to fp32", _as_ours(lost, OURS)),
        compared(f"file: 1 - cosine to fp32, {MIXED}", _as_ours(lost, MIXED)),
    ]


def _as_ours(values: Mapping[str, float], name: str) -> dict[str, float]:
    """The rivals', and that file of ours, if it was shipped."""
    shown = {candidate: value for candidate, value in values.items() if candidate not in COMMANDS}
    return shown | ({OURS: values[name]} if name in values else {})
