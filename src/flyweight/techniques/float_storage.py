"""Weights stored as float16, bfloat16 or float8: half or a quarter of the bytes, computed with as float32.

float8 has a scale a row. float16 ends at 65504: a layer with larger weights is refused, by name.

Source: see `flyweight.tensors.float_formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

from torch import Tensor

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import UnsupportedError
from flyweight.techniques import _settings
from flyweight.techniques._stored import stored, weight_of
from flyweight.tensors.encoded import attach
from flyweight.tensors.float_formats import FLOAT_FORMATS, FloatEncoder, FloatForm

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class FloatStorage:
    """See the module's docstring.

    Settings: ``format`` float16, bfloat16, float8_e4m3fn or float8_e5m2.
    """

    name = "float_storage"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {"format": "float16"}

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """float16 and float8_e4m3fn, for every layer."""
        for layer in profile.layers:
            yield Decision(self.name, (layer.name,), self.stage, {})
            yield Decision(self.name, (layer.name,), self.stage, {"format": "float8_e4m3fn"})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        form = self._form(decision)
        for name in decision.layers:
            layer = profile.by_name[name]
            bits = form.stored_bits(layer.rows, layer.columns, kept=layer.kept)
            after = stored(layer, bits, form.format, group_size=0 if form.scaled else None)
            profile = profile.with_layer(after)
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; needs no batches.

        Raises:
            UnsupportedError: The weights of a layer are too large for the format.
        """
        form = self._form(decision)
        for name in decision.layers:
            encoder = FloatEncoder(form)
            try:
                encoder(*weight_of(model.module, name))
            except ValueError as error:
                raise UnsupportedError(
                    f"layer {name!r}: {error}: leave it out of the plan, or set format=bfloat16"
                ) from error
            attach(model.module, name, encoder, self.name)

    def _form(self, decision: Decision) -> FloatForm:
        settings = _settings.complete(decision, self.defaults)
        _settings.choice(settings, "format", FLOAT_FORMATS)
        return FloatForm(settings["format"])  # type: ignore[arg-type]
