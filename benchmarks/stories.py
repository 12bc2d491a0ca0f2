"""stories260K, a Llama of 260 000 weights (karpathy/tinyllamas), and the TinyStories it is judged on.

The first 100 stories of the sample are the held-out text; calibration and training draw on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flyweight.data.examples import Examples, Splits
from flyweight.data.preprocessing import Preprocessing
from flyweight.measure.profile import profile
from flyweight.model import Model

EVALUATED = 100
CONTEXT = 512  # tokens the model was trained with; longer stories are cut
SEQUENCE = 256
WRITTEN, WRITTEN_AT_ONCE = 2048, 512  # sequences
AXES = {0: "batch", 1: "tokens"}


@final
class Logits(nn.Module):
    """The model, giving logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, tokens, vocabulary) logits of (batch, tokens) ids."""
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


def model(shared: Path) -> Logits:
    """The model with its weights, embedding and head tied."""
    from transformers import AutoModelForCausalLM

    folder = shared / "data" / "stories260K" / "hf"
    return Logits(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")).eval()


def opened(shared: Path) -> Model:
    """The same as flyweight works with it, for texts of any length."""
    return Model(
        "stories260K",
        model(shared),
        {"input_ids": torch.ones(1, 8, dtype=torch.int64)},
        {"input_ids": AXES},
        Preprocessing(),
    )


def quantized_layers(subject: Model) -> tuple[str, ...]:
    """All linear layers but the head, whose weight is the embedding's."""
    return tuple(x.name for x in profile(subject).layers if x.op == "linear" and "lm_head" not in x.name)


def likelihood(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(texts,) mean log-likelihood of the tokens ``targets``, from (texts, tokens, vocabulary) logits."""
    logits = torch.from_numpy(outputs)[:, :-1].transpose(1, 2)
    each = functional.cross_entropy(logits, torch.from_numpy(targets)[:, 1:], reduction="none")
    found: np.ndarray = -each.mean(1).numpy()
    return found


def splits(shared: Path, ids: np.ndarray) -> Splits:
    """What may be learned from and calibrated on, (sequences, `SEQUENCE`); the evaluation split is not used.

    Stories that are judged have many lengths: `nats` judges them one by one.
    """
    examples = Examples({"input_ids": ids}, targets=ids)
    evaluated = np.stack([np.resize(story, SEQUENCE) for story in stories(shared)[:EVALUATED]])
    return Splits(
        train=examples, calibration=examples, evaluation=Examples({"input_ids": evaluated}, evaluated)
    )


def stories(shared: Path) -> list[np.ndarray]:
    """Token ids of every story of the sample, from its opening token on."""
    with np.load(shared / "data" / "stories260K" / "tinystories_sample_tokens.npz") as sample:
        ends = np.cumsum(sample["lengths"])[:-1]
        return [story[:CONTEXT].astype(np.int64) for story in np.split(sample["tokens"], ends)]


def calibration(shared: Path, *, sequences: int | None = None) -> np.ndarray:
    """(sequences, `SEQUENCE`) ids of the stories that are not evaluated, one after the other."""
    tokens = np.concatenate(stories(shared)[EVALUATED:])
    count = len(tokens) // SEQUENCE
    return tokens[: count * SEQUENCE].reshape(count, SEQUENCE)[:sequences]


@torch.no_grad()
def written(shared: Path, *, sequences: int = WRITTEN, seed: int = 0) -> np.ndarray:
    """(sequences, `SEQUENCE`) ids of text that the model writes itself, drawn from its own probabilities.

    Source: Liu et al. 2023, arXiv:2305.17888, section 2.1 (a quantized model learns from what the float model
    writes).
    """
    subject, generator = model(shared).model, torch.Generator().manual_seed(seed)
    found = []
    for first in range(0, sequences, WRITTEN_AT_ONCE):
        ids = latest = torch.ones(min(WRITTEN_AT_ONCE, sequences - first), 1, dtype=torch.int64)  # opening
        cache = None
        while ids.shape[1] < SEQUENCE:
            output = subject(input_ids=latest, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            latest = torch.multinomial(output.logits[:, -1].softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, latest], 1)
        found.append(ids.numpy())
    return np.concatenate(found)


@torch.no_grad()
def nats(logits_of: Callable[[Tensor], Tensor], shared: Path, *, count: int = EVALUATED) -> float:
    """Mean negative log-likelihood of a token, over the held-out stories."""
    total, tokens = 0.0, 0
    for story in stories(shared)[:count]:
        ids = torch.from_numpy(story)[None]
        logits = logits_of(ids)[0, :-1]
        total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += len(story) - 1
    return total / tokens
