"""Codebooks: every weight becomes the nearest of a few values, found by k-means for a layer or a row.

``importance=inputs`` counts a weight's error by the energy of what it is multiplied with.

Source: see `flyweight.tensors.codebook` and `flyweight.tensors.kmeans`.
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
from flyweight.tensors.codebook import TABLE_GRANULARITIES, CodebookEncoder, CodebookForm, fit_table
from flyweight.tensors.encoded import attach
from flyweight.tensors.kmeans import STARTS

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class Codebook:
    """See the module's docstring.

    Settings: ``bits`` 2..8 of a code; ``granularity`` tensor or channel, of the tables; ``start`` of k-means,
    linear, density or optimal; ``importance`` uniform or inputs (needs calibration data).
    """

    name = "codebook"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {
        "bits": 4,
        "granularity": "channel",
        "start": "optimal",
        "importance": "uniform",
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """4 bits with one table, and with a table a row by importance, for every layer."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {"granularity": "tensor"})
            yield Decision(self.name, (layer.name,), self.stage, {"importance": "inputs"})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        form = self._form(self._checked(decision))
        for name in decision.layers:
            layer = profile.by_name[name]
            bits = form.stored_bits(layer.rows, layer.columns, kept=layer.kept)
            entries = form.entries(layer.rows, layer.columns)
            tables = CodebookProfile(entries=entries, tables=form.tables(layer.rows))
            profile = profile.with_layer(stored(layer, bits, "codebook", codebook=tables))
        return profile

    @torch.no_grad()
    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place.

        Raises:
            InputError: ``importance`` is inputs, and there are no calibration batches.
        """
        settings = self._checked(decision)
        form = self._form(settings)
        importance = importance_of(model, decision, str(settings["importance"]), batches)
        for name in decision.layers:
            weight, before = weight_of(model.module, name)
            table = fit_table(
                weight,
                form,
                None if before is None else before.mask,
                importance=importance[name],
                start=settings["start"],  # type: ignore[arg-type]
            )
            attach(model.module, name, CodebookEncoder(form, table), self.name)

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        _settings.choice(settings, "granularity", TABLE_GRANULARITIES)
        _settings.choice(settings, "start", STARTS)
        _settings.choice(settings, "importance", IMPORTANCES)
        return settings

    def _form(self, settings: Mapping[str, Scalar]) -> CodebookForm:
        return CodebookForm(bits=settings["bits"], granularity=settings["granularity"])  # type: ignore[arg-type]
