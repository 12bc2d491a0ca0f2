"""Hugging Face models as modules with plain tensors in and one tensor out."""

from __future__ import annotations

from typing import Any, Literal, final

from jaxtyping import Float, Int64
from torch import Tensor, nn

Pooling = Literal["mean", "cls", "max"]


@final
class SentenceEncoder(nn.Module):
    """An encoder whose token states are pooled to one embedding a text.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084, section 3 (pooling strategies).
    """

    def __init__(self, encoder: nn.Module, pooling: Pooling, *, normalize: bool) -> None:
        super().__init__()
        self.encoder, self.pooling, self.normalize = encoder, pooling, normalize

    def forward(
        self, input_ids: Int64[Tensor, "batch tokens"], attention_mask: Int64[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch width"]:
        """Embeddings; tokens with mask 0 do not count."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = self._pooled(states, attention_mask.unsqueeze(-1))
        return nn.functional.normalize(pooled, dim=1) if self.normalize else pooled

    def _pooled(
        self, states: Float[Tensor, "batch tokens width"], mask: Int64[Tensor, "batch tokens 1"]
    ) -> Float[Tensor, "batch width"]:
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "max":
            return states.masked_fill(mask == 0, float("-inf")).amax(dim=1)
        weights = mask.to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)


@final
class TextClassifier(nn.Module):
    """A sequence classification model that gives its logits."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self,
        input_ids: Int64[Tensor, "batch tokens"],
        attention_mask: Int64[Tensor, "batch tokens"],
        token_type_ids: Int64[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Logits; ``token_type_ids`` tell the two texts of a pair apart."""
        types: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


@final
class ImageClassifier(nn.Module):
    """An image classification model that gives its logits."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.classifier(pixel_values=pixel_values).logits
        return logits
