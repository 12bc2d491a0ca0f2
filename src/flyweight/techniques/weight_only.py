"""Weight-only round-to-nearest quantization: 2 to 8 bits, symmetric or not, by tensor, channel or group.

Source: Krishnamoorthi 2018, arXiv:1806.08342, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

from torch import Tensor

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.techniques import _settings
from flyweight.techniques._affine import encoder_for, form_of, predicted, statistics_for
from flyweight.tensors.affine import GRANULARITIES
from flyweight.tensors.encoded import attach
from flyweight.tensors.ranges import RANGE_METHODS

if TYPE_CHECKING:
    from flyweight.model import Model

DEFAULT_GROUP_SIZE = 32


@final
class WeightOnly:
    """See the module's docstring.

    Settings: ``bits`` 2..8 or 16; ``symmetric``; ``granularity`` tensor, channel or group; ``group_size`` (by
    group, at least 2); ``range_method`` minmax, percentile, entropy, mse or adaptive.
    """

    name = "weight_only"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {
        "bits": 8,
        "symmetric": True,
        "granularity": "channel",
        "group_size": DEFAULT_GROUP_SIZE,
        "range_method": "minmax",
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """8 bits by channel, and 4 bits by group, for every layer."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {})
            yield Decision(self.name, (layer.name,), self.stage, {"bits": 4, "granularity": "group"})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        form = form_of(self._checked(decision))
        for name in decision.layers:
            profile = profile.with_layer(predicted(profile.by_name[name], form))
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; needs no batches, but adaptive ranges see with them what matters."""
        form = form_of(self._checked(decision))
        inputs = statistics_for(model, decision, form, batches)
        for name in decision.layers:
            encoder = encoder_for(model.module, name, form, inputs=inputs[name])
            attach(model.module, name, encoder, self.name)

    def _checked(self, decision: Decision) -> dict[str, Scalar]:
        settings = _settings.complete(decision, self.defaults)
        _settings.choice(settings, "granularity", GRANULARITIES)
        _settings.choice(settings, "range_method", RANGE_METHODS)
        return settings
