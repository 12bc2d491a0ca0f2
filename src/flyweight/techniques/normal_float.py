"""Normal floats (NF4 and other widths): the best values for normally distributed weights, scaled by group.

Source: see `flyweight.tensors.normal_float`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

from torch import Tensor

from flyweight.core.layer import CodebookProfile, ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.techniques import _settings
from flyweight.techniques._stored import GRANULARITIES, group_size_of, stored
from flyweight.tensors.encoded import attach
from flyweight.tensors.normal_float import NormalFloatEncoder, NormalFloatForm

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class NormalFloat:
    """See the module's docstring.

    Settings: ``bits`` 2..8; ``granularity`` channel or group, of the scales; ``group_size`` (by group, at
    least 2).
    """

    name = "normal_float"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {"bits": 4, "granularity": "group", "group_size": 64}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """4 bits by group, for every layer."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        form = self._form(decision)
        table = CodebookProfile(entries=1 << form.bits, tables=0)
        for name in decision.layers:
            layer = profile.by_name[name]
            bits = form.stored_bits(layer.rows, layer.columns, kept=layer.kept)
            after = stored(layer, bits, "normal_float", group_size=form.group_size, codebook=table)
            profile = profile.with_layer(after)
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; needs no batches."""
        form = self._form(decision)
        for name in decision.layers:
            attach(model.module, name, NormalFloatEncoder(form), self.name)

    def _form(self, decision: Decision) -> NormalFloatForm:
        settings = _settings.complete(decision, self.defaults)
        _settings.choice(settings, "granularity", GRANULARITIES)
        return NormalFloatForm(bits=settings["bits"], group_size=group_size_of(settings))  # type: ignore[arg-type]
