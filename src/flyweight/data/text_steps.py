"""Preprocessing step on texts: tokenize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import numpy as np

from flyweight.data.steps import Columns
from flyweight.data.tokenizer import TokenizerFile
from flyweight.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 131_072  # bound on what an untrusted manifest may ask for


@final
@dataclass(frozen=True, kw_only=True)
class Tokenize:
    """Texts to int64 ``input_ids`` and ``attention_mask``, each (examples, tokens).

    Takes the single text column whatever its name, or, for ``pair``, the two columns in their order.

    Attributes:
        tokenizer: The definition.
        max_length: Tokens kept of one example, special tokens counted; cut on the right.
        padding: ``"longest"`` example of the batch, or ``"fixed"``: always ``max_length``. On the right.
        pad_id: Id written after the end.
        token_type_ids: Also output which text of a pair a token belongs to.
        pair: Encode two texts as one example.
    """

    tokenizer: TokenizerFile
    max_length: int
    padding: Literal["longest", "fixed"] = "longest"
    pad_id: int = 0
    token_type_ids: bool = False
    pair: bool = False
    kind: ClassVar[str] = "tokenize"

    def __post_init__(self) -> None:
        if not 1 <= self.max_length <= MAX_TOKENS:
            raise ValueError(f"max_length must be in 1..{MAX_TOKENS}, got {self.max_length}")
        if not 0 <= self.pad_id < 2**31:
            raise ValueError(f"pad_id must be in 0..2^31-1, got {self.pad_id}")

    def __call__(self, columns: Columns) -> Columns:
        """``input_ids``, ``attention_mask`` and, if asked, ``token_type_ids``."""
        expected = 2 if self.pair else 1
        if len(columns) != expected:
            takes = "two text columns" if self.pair else "one text column"
            raise InputError(
                f"the tokenizer takes {takes}, the data have {', '.join(columns)}; "
                f"choose {'two' if self.pair else 'one'} with --input-column"
            )
        texts = [_texts(name, values) for name, values in columns.items()]
        batch = list(zip(*texts, strict=True)) if self.pair else texts[0]
        encodings = self._encode(batch)
        outputs = {
            "input_ids": np.array([e.ids for e in encodings], dtype=np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], dtype=np.int64),
        }
        if self.token_type_ids:
            outputs["token_type_ids"] = np.array([e.type_ids for e in encodings], dtype=np.int64)
        return outputs

    def _encode(self, batch: Sequence[Any]) -> Sequence[Any]:
        tokenizer = self._tokenizer
        try:
            return tokenizer.encode_batch_fast(batch)
        except Exception as error:  # tokenizers raises Exception itself
            raise InputError(f"the tokenizer failed: {error}") from error

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """Opened on first use; truncates and pads as the step says."""
        tokenizer = self.tokenizer.open()
        special = tokenizer.num_special_tokens_to_add(self.pair)
        if self.max_length <= special:
            raise ArtifactError(
                f"max_length {self.max_length} leaves no room for text beside {special} special tokens"
            )
        tokenizer.enable_truncation(self.max_length)
        tokenizer.enable_padding(
            pad_id=self.pad_id, length=self.max_length if self.padding == "fixed" else None
        )
        return tokenizer


def _texts(name: str, values: np.ndarray | Sequence[Any]) -> list[str]:
    texts = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"input {name!r}, example {index} is a {type(text).__name__} where text is needed"
            )
    return texts
