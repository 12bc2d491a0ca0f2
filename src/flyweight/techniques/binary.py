"""Binary and ternary weights, without training: one or two bits a weight.

Every weight becomes its sign times the mean magnitude of its row (``binary``), its bare sign (``sign``), or 0
where it is small and its sign times the mean magnitude of the others where not (``ternary``). Networks that
were not trained for it seldom survive the first two; quantization-aware training goes on from here.

Source: see `flyweight.tensors.binary`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

from torch import Tensor

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.techniques import _settings
from flyweight.techniques._stored import GRANULARITIES, group_size_of, stored
from flyweight.tensors.binary import BinaryEncoder, BinaryForm
from flyweight.tensors.encoded import attach

if TYPE_CHECKING:
    from flyweight.model import Model

METHODS = ("binary", "sign", "ternary")


@final
class Binary:
    """See the module's docstring.

    Settings: ``method`` binary, sign or ternary; ``granularity`` channel or group, of the scales;
    ``group_size`` (by group, at least 2).
    """

    name = "binary"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {"method": "binary", "granularity": "channel", "group_size": 64}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Ternary and binary weights by channel, for every layer."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {})
            yield Decision(self.name, (layer.name,), self.stage, {"method": "ternary"})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        form = self._form(decision)
        for name in decision.layers:
            layer = profile.by_name[name]
            bits = form.stored_bits(layer.rows, layer.columns, kept=layer.kept)
            size = form.group_size if form.scaled else None
            profile = profile.with_layer(stored(layer, bits, form.levels, group_size=size))
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; needs no batches."""
        form = self._form(decision)
        for name in decision.layers:
            attach(model.module, name, BinaryEncoder(form), self.name)

    def _form(self, decision: Decision) -> BinaryForm:
        settings = _settings.complete(decision, self.defaults)
        method = _settings.choice(settings, "method", METHODS)
        _settings.choice(settings, "granularity", GRANULARITIES)
        return BinaryForm(
            levels="ternary" if method == "ternary" else "binary",
            scaled=method != "sign",
            group_size=group_size_of(settings),
        )
