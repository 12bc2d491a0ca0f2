"""int8 MiniLM: embeddings from a quarter of the bytes, closer to float than ONNX Runtime's dynamic int8."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import minilm, newcomer, rivals
from benchmarks.claims import FLOAT, OURS, Check, Claim, Context, Outcome, compared
from benchmarks.float_export import Exporter, export_float
from benchmarks.rivals import ONNXRUNTIME
from benchmarks.timing import loading, open_session, speed_checks, timed

MEGABYTE = 1e6
LARGEST_MEGABYTES = 23.0
LARGEST_DROP = 0.001
LEAST_COSINE = 0.996
LEAST_UNCHANGED = 0.97
LENGTHS = (32, 128)  # tokens
BATCH = 32
SPEED_ONLY = " (TorchScript)"  # the same weights and answers in another graph

VARIANTS: tuple[dict[str, Any], ...] = (
    {"name": "per tensor", "mode": "dynamic", "per_channel": False},
    {"name": "per channel", "mode": "dynamic", "per_channel": True},
)


def run(context: Context) -> Outcome:
    """Quality on STS-B dev and Banking77, bytes, and speed at two lengths."""
    dev = context.data("stsb", "stsb-en-dev.csv")
    attempt = newcomer.compress(
        [minilm.model_folder(), "--data", dev, "--task", "similarity", "--technique", "dynamic_int8"],
        out=context.work / "ours",
        shared=context.shared,
    )
    files, versions = _rivals(context)
    if attempt.model_file is not None:
        files[OURS] = attempt.model_file
    sessions = {name: open_session(path, context.threads) for name, path in files.items()}
    for_quality = {name: session for name, session in sessions.items() if not name.endswith(SPEED_ONLY)}
    checks = [
        *_size(files, attempt.storage_bytes()),
        *_similarity(for_quality, minilm.stsb(dev), context),
        *_neighbours(for_quality, context),
        *_speed(files, context),
        attempt.time_check("minilm"),
    ]
    return Outcome(checks=tuple(checks), notes=attempt.notes("minilm"), versions=versions)


def _rivals(context: Context) -> tuple[dict[str, Path], dict[str, str]]:
    """The float file, and quantized files from both of torch's exporters, whose graphs differ in speed."""
    exporters: dict[Exporter, str] = {"torch.export": "", "TorchScript": SPEED_ONLY}
    encoder = minilm.encoder()
    files: dict[str, Path] = {}
    versions: dict[str, str] = {}
    for exporter, suffix in exporters.items():
        work = context.work / exporter
        work.mkdir()
        original = work / "fp32.onnx"
        export_float(encoder, minilm.example(), original, axes=minilm.AXES, exporter=exporter)
        job = {"model": str(original), "out": str(work), "variants": VARIANTS}
        answer = rivals.run(ONNXRUNTIME, job, arrays={}, work=work)
        files[FLOAT + suffix] = original
        files |= {name + suffix: Path(path) for name, path in answer["files"].items()}
        versions = answer["versions"]
    return files, versions


def _size(files: Mapping[str, Path], storage_bytes: int | None) -> list[Check]:
    """The model file, and all files; tokenizer and manifest are among them."""
    megabytes = {name: path.stat().st_size / MEGABYTE for name, path in files.items()}
    everything = None if storage_bytes is None else storage_bytes / MEGABYTE
    return [
        compared("model file, MB", megabytes, bar=LARGEST_MEGABYTES, direction="at most"),
        Check(
            what="all files with tokenizer, MB", ours=everything, bar=LARGEST_MEGABYTES, direction="at most"
        ),
    ]


def _similarity(sessions: Mapping[str, Any], dev: minilm.Pairs, context: Context) -> list[Check]:
    """Spearman of the pairs' cosines, and the cosine to float: alone as deployed, and in batches."""
    tokens = minilm.tokenizer()
    pairs = 200 if context.quick else len(dev.gold)
    texts = dev.first[:pairs] + dev.second[:pairs]
    alone = {name: minilm.embeddings(s, tokens, texts, batch=1) for name, s in sessions.items()}
    batched = {name: minilm.embeddings(s, tokens, texts, batch=BATCH) for name, s in sessions.items()}
    spearman = {name: _spearman(found, dev.gold[:pairs]) for name, found in alone.items()}
    drop = {name: spearman[FLOAT] - value for name, value in spearman.items()}
    return [
        compared("STS-B dev: Spearman", spearman),
        compared("STS-B dev: drop of Spearman", drop, bar=LARGEST_DROP, direction="at most"),
        compared("STS-B dev: cosine to fp32, batch 1", _to_float(alone), bar=LEAST_COSINE),
        compared(f"STS-B dev: cosine to fp32, batch {BATCH}", _to_float(batched), bar=LEAST_COSINE),
    ]


def _spearman(embeddings: np.ndarray, gold: np.ndarray) -> float:
    """Of each pair's cosine; ``embeddings`` are (2 * pairs, width), first sentences before second ones."""
    from scipy.stats import spearmanr

    cosine = (embeddings[: len(gold)] * embeddings[len(gold) :]).sum(axis=1)
    return float(spearmanr(cosine, gold).statistic)


def _to_float(embeddings: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean cosine over sentences, by candidate."""
    return {name: float((found * embeddings[FLOAT]).sum(axis=1).mean()) for name, found in embeddings.items()}


def _neighbours(sessions: Mapping[str, Any], context: Context) -> list[Check]:
    """Intents of the nearest training sentence: right, and the same as with float embeddings."""
    train = minilm.banking77(context.data("banking77", "train.csv"), 500 if context.quick else None)
    test = minilm.banking77(context.data("banking77", "test.csv"), 250 if context.quick else None)
    tokens = minilm.tokenizer()
    intents: dict[str, np.ndarray] = {}
    for name, session in sessions.items():
        known = minilm.embeddings(session, tokens, train.texts, batch=1)
        asked = minilm.embeddings(session, tokens, test.texts, batch=1)
        intents[name] = train.intents[(asked @ known.T).argmax(axis=1)]
    right = {name: float((found == test.intents).mean()) for name, found in intents.items()}
    same = {name: float((found == intents[FLOAT]).mean()) for name, found in intents.items()}
    return [
        compared("Banking77: nearest neighbour right", right),
        compared("Banking77: nearest neighbour's intent unchanged", same, bar=LEAST_UNCHANGED),
    ]


def _speed(files: Mapping[str, Path], context: Context) -> list[Check]:
    """Batch 1 at each length; the bar is about the per-channel files."""
    tokens = minilm.tokenizer()
    checks: list[Check] = []
    for length in LENGTHS:
        feeds = partial(minilm.feeds, encoded=minilm.sentence_of(tokens, length))
        loads = {name: loading(path, context.threads, feeds) for name, path in files.items()}
        samples = timed(loads, seconds=5 if context.quick else 40)
        per_channel = [name for name in files if name.startswith("per channel")]
        checks += speed_checks(
            f"batch 1, {length} tokens", samples, rivals=per_channel, called="per-channel rival"
        )
    return checks


CLAIM = Claim(
    "minilm_int8",
    "all-MiniLM-L6-v2 fits in 23 MB, closer to float than ONNX Runtime's dynamic int8 and no slower.",
    "23.0 MB, all files included; Spearman drop at most 0.001; cosine 0.996; 97 % of neighbours unchanged; "
    "at least as fast",
    run,
)
