"""Vector quantization: neighbouring weights share one code into a table of vectors, found by k-means.

``importance=inputs`` counts a weight's error by the energy of what it is multiplied with.

Source: see `flyweight.tensors.vector`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from flyweight.core.layer import CodebookProfile, ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.techniques import _settings
from flyweight.techniques._importance import IMPORTANCES, importance_of
from flyweight.techniques._stored import stored, weight_of
from flyweight.tensors.encoded import attach
from flyweight.tensors.vector import VectorEncoder, VectorForm, fit_vectors

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class Vector:
    """See the module's docstring.

    Settings: ``bits`` 2..12 of a code; ``dimension`` of the vectors, at least 2: a weight takes ``bits /
    dimension`` bits; ``importance`` uniform or inputs (needs calibration data); ``seed`` of k-means.
    """

    name = "vector"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {"bits": 8, "dimension": 4, "importance": "uniform", "seed": 0}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """2 bits a weight, by importance, for every layer."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {"importance": "inputs"})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        form = self._form(self._checked(decision))
        for name in decision.layers:
            layer = profile.by_name[name]
            bits = form.stored_bits(layer.rows, layer.columns, kept=layer.kept)
            table = CodebookProfile(entries=form.entries(layer.rows, layer.columns), dimension=form.dimension)
            profile = profile.with_layer(stored(layer, bits, "vector", codebook=table))
        return profile

    @torch.no_grad()
    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place.

        Raises:
            InputError: ``importance`` is inputs, and there are no calibration batches.
        """
        settings = self._checked(decision)
        form, seed = self._form(settings), int(settings["seed"])
        importance = importance_of(model, decision, str(settings["importance"]), batches)
        for name in decision.layers:
            weight, before = weight_of(model.module, name)
            mask, counts = None if before is None else before.mask, importance[name]
            table = fit_vectors(weight, form, mask, importance=counts, seed=seed)
            attach(model.module, name, VectorEncoder(form, table, counts), self.name)

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        _settings.choice(settings, "importance", IMPORTANCES)
        return settings

    def _form(self, settings: Mapping[str, Scalar]) -> VectorForm:
        return VectorForm(bits=settings["bits"], dimension=settings["dimension"])  # type: ignore[arg-type]
