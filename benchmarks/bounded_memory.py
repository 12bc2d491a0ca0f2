"""Bounded memory: GPTQ of a stack of transformer blocks, a billion weights, in memory for a few blocks.

The model is made from a seed and written once, in shards of bfloat16, to ``--work``. The run that is measured
is a process of its own with ``RLIMIT_DATA`` set to the cap, which bounds the memory it may write to. One that
was ended goes on where it was when this is called again with the same ``--work``.

    python -m benchmarks bounded_memory --quick
    python -m benchmarks.bounded_memory --work FOLDER --seconds 500      # again until it is done
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import results
from benchmarks.claims import Check, Claim, Context, Outcome
from benchmarks.processes import ROOT
from flyweight.core.plan import Scalar
from flyweight.errors import FlyweightError
from flyweight.export.shards import write_shard
from flyweight.load.tensor_files import index_text
from flyweight.streaming import StreamSettings, stream

VOCABULARY, TOKENS, EXAMPLES = 256, 128, 2
SEED = 0
SETTINGS: dict[str, Scalar] = {
    "bits": 4,
    "granularity": "group",
    "group_size": 32,
    "symmetric": True,
    "rounds": 0,
}
FLOAT_BYTES = 4
BAR = 0.4  # of the float32 weights: less than half precision would take
LOOKS = 50
PIECES = "pieces.jsonl"  # peaks of each process that had a part in it
STOPPED, UNDONE = 143, 3
STATUS = Path("/proc/self/status")


@final
@dataclass(frozen=True)
class Size:
    """Of a stack."""

    blocks: int
    width: int
    hidden: int
    cap_bytes: float

    @property
    def block_weights(self) -> int:
        """Of one block, norms included."""
        return 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width


FULL = Size(blocks=80, width=1024, hidden=2816, cap_bytes=1.5e9)
QUICK = Size(blocks=32, width=512, hidden=1408, cap_bytes=1.5e9)  # a tenth


def _linear(columns: int, rows: int) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)


@final
class Block(nn.Module):
    """Llama's: RMS norms, causal attention, a gated hidden layer; no biases."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.query, self.key = _linear(size.width, size.width), _linear(size.width, size.width)
        self.value, self.out = _linear(size.width, size.width), _linear(size.width, size.width)
        self.gate, self.up = _linear(size.width, size.hidden), _linear(size.width, size.hidden)
        self.down = _linear(size.hidden, size.width)
        self.norm1, self.norm2 = nn.RMSNorm(size.width), nn.RMSNorm(size.width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width)."""
        batch, tokens, width = x.shape
        y = self.norm1(x)
        query, key, value = (
            layer(y).view(batch, tokens, width // 64, 64).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        y = self.norm2(x)
        result: Tensor = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return result


@final
class Stack(nn.Module):
    """Tokens to logits."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, size.width)
        self.blocks = nn.ModuleList([Block(size) for _ in range(size.blocks)])
        self.norm, self.head = nn.RMSNorm(size.width), nn.Linear(size.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens) to (batch, tokens, vocabulary)."""
        x = self.words(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def write_model(folder: Path, size: Size) -> None:
    """The weights, normal by a seed, a shard a block; what is there already stays."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    files = [folder / f"shard-{i:05d}.safetensors" for i in range(size.blocks + 1)]
    with torch.device("meta"):
        block, whole = Block(size), Stack(replace(size, blocks=1))
    for number, file in enumerate(files[:-1]):
        shapes = {f"blocks.{number}.{n}": tuple(p.shape) for n, p in block.named_parameters()}
        write_shard(file, _random(shapes, size.blocks, generator), {})
    rest = {n: tuple(p.shape) for n, p in whole.named_parameters() if not n.startswith("blocks.")}
    write_shard(files[-1], _random(rest, size.blocks, generator), {})
    index.write_text(index_text(files), encoding="utf-8")


def _random(shapes: dict[str, tuple[int, ...]], blocks: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Norms 1; weights as networks begin with, those that end a branch shrunk by depth."""
    made = {}
    for name, shape in shapes.items():
        if "norm" in name:
            weight = torch.ones(shape)
        else:
            shrink = (2 * blocks) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
            weight = torch.randn(shape, generator=generator) * shape[-1] ** -0.5 * shrink
        made[name] = weight.bfloat16()
    return made


def write_data(path: Path) -> None:
    """Tokens by a seed."""
    tokens = np.random.default_rng(SEED).integers(VOCABULARY, size=(EXAMPLES, TOKENS))
    np.savez(path, tokens=tokens)


@final
class _Watch:
    """The largest anonymous memory of this process, looked at `LOOKS` times a second."""

    def __init__(self) -> None:
        self.peak = _status("RssAnon")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(1 / LOOKS):
            self.peak = max(self.peak, _status("RssAnon"))

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()


def streamed(work: Path, size: Size) -> None:
    """Run by the process that is measured: streams under the cap, and adds its peaks to those in ``work``."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    before, began = _status("RssAnon"), time.monotonic()
    settings = StreamSettings(
        model=f"stack of {size.blocks} blocks",
        weights=work / "model",
        out=work / "out",
        data=str(work / "data.npz"),
        technique_settings=SETTINGS,
        cache_dir=work,
        max_memory_bytes=size.cap_bytes,
    )
    watch = _Watch()
    try:
        stream(settings, make=lambda: Stack(size))
    finally:
        watch.end()
        piece = {
            "before": before,
            "peak": watch.peak,
            "resident": _status("VmHWM"),
            "s": time.monotonic() - began,
        }
        with (work / PIECES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(piece) + "\n")


def measured(work: Path, size: Size, seconds: float | None) -> Outcome | None:
    """Stream in a process of its own; None where ``seconds`` did not suffice, and it can go on later.

    Raises:
        FlyweightError: The process failed.
    """
    write_model(work / "model", size)
    write_data(work / "data.npz")
    command = [sys.executable, "-m", "benchmarks.bounded_memory", "--work", str(work), "--inside"]
    process = subprocess.Popen([*command, *(["--quick"] if size == QUICK else [])], cwd=ROOT)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        return None
    if code:
        raise FlyweightError(f"the process that streams ended with code {code}")
    return _outcome(work, size)


def _outcome(work: Path, size: Size) -> Outcome:
    pieces = [json.loads(line) for line in (work / PIECES).read_text(encoding="utf-8").splitlines()]
    weights = size.blocks * size.block_weights + 2 * VOCABULARY * size.width + size.width
    whole, block = weights * FLOAT_BYTES, size.block_weights * FLOAT_BYTES
    peak, resident = max(piece["peak"] for piece in pieces), max(piece["resident"] for piece in pieces)
    growth = max(piece["peak"] - piece["before"] for piece in pieces)
    out = sum(file.stat().st_size for file in (work / "out").iterdir())
    checks = (
        Check(
            what="peak memory of the process, of the model's in float32",
            ours=peak / whole,
            bar=BAR,
            direction="at most",
        ),
        Check(what="cap (RLIMIT_DATA) it ran under, MB", ours=size.cap_bytes / 1e6),
        Check(what="peak anonymous memory, MB", ours=peak / 1e6),
        Check(what="of this, above what Python and torch had before, MB", ours=growth / 1e6),
        Check(what="peak resident memory with mapped files, MB", ours=resident / 1e6),
        Check(what="the model in float32, MB", ours=whole / 1e6),
        Check(what="a block in float32, MB", ours=block / 1e6),
        Check(what="its widest layer's second moment in float64, MB", ours=8 * size.hidden**2 / 1e6),
        Check(what="what was written, MB", ours=out / 1e6),
        Check(what="time, s", ours=sum(piece["s"] for piece in pieces)),
    )
    note = (
        f"{weights:,} weights in {size.blocks} blocks, GPTQ of 4 bits in groups of 32 without refits, "
        f"{EXAMPLES} x {TOKENS} calibration tokens, activations on disk, one thread, {len(pieces)} piece(s)."
    )
    return Outcome(checks=checks, notes=(note,))


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise FlyweightError(f"this system does not tell {field}: measure on Linux")
    return int(found[1]) * 1024


def _run(context: Context) -> Outcome:
    outcome = measured(context.work, QUICK if context.quick else FULL, None)
    assert outcome is not None  # without a limit of time it ends
    return outcome


CLAIM = Claim(
    "bounded_memory",
    "A billion weights are quantized by GPTQ in a third of the memory that they take themselves.",
    f"it ends under a cap of {FULL.cap_bytes / 1e9:g} GB, and takes at most {BAR:.0%} of the model's size in "
    "float32",
    _run,
)


def main() -> int:
    """Measure with files that stay, in pieces if asked; 0 where the bar holds, 3 where time ran out."""
    parser = argparse.ArgumentParser(description=CLAIM.sentence)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and what comes of it")
    parser.add_argument("--quick", action="store_true", help="a tenth of the weights; nothing is stored")
    parser.add_argument("--seconds", type=float, help="end after so long; the next call goes on")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    work, size = asked.work.resolve(), QUICK if asked.quick else FULL
    if asked.inside:
        streamed(work, size)
        return 0
    outcome = measured(work, size, asked.seconds)
    if outcome is None:
        print("not done yet: call this again")
        return UNDONE
    for check in outcome.checks:
        print(" | ".join(results.cells(check)))
    if not asked.quick:
        context = Context(shared=work, work=work, threads=1, quick=False)
        print(f"stored in {results.store(CLAIM.name, outcome, context)}")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
