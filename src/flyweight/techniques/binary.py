"""Binary and ternary weights: one or two bits a weight, which training (--epochs) makes accurate.

Every weight becomes its sign times the mean magnitude of its row (``binary``), its bare sign (``sign``), or 0
where it is small and its sign times the mean magnitude of the others where not (``ternary``). Few networks
survive that as it is; with calibration data, signs and scales are instead those that keep the outputs of each
layer, found as GPTQ finds its codes. Quantization-aware training goes on from here.

Source: see `flyweight.tensors.binary`, and for the latter `flyweight.techniques.gptq` and Huang et al. 2024,
arXiv:2402.04291 (BiLLM: column by column to signs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, final

from torch import Tensor, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.measure.curvature import Moments
from flyweight.techniques import _settings
from flyweight.techniques._compensation import Effort, bias_shift, round_to_signs
from flyweight.techniques._stored import GRANULARITIES, group_size_of, stored
from flyweight.techniques.gptq import captured, layer_at, walk_moments, weight_of
from flyweight.tensors.binary import BinaryEncoder, BinaryForm
from flyweight.tensors.encoded import attach

if TYPE_CHECKING:
    from flyweight.model import Model

METHODS = ("binary", "sign", "ternary")
ROUNDINGS = ("auto", "nearest", "compensated")


@final
class Binary:
    """See the module's docstring.

    Settings: ``method`` binary, sign or ternary; ``granularity`` channel or group, of the scales;
    ``group_size`` (by group, at least 2); ``rounding`` nearest, compensated, which needs calibration data, or
    auto, which is compensated where there is such data.
    """

    name = "binary"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {
        "method": "binary",
        "granularity": "channel",
        "group_size": 64,
        "rounding": "auto",
    }

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
        """Change ``model`` in place; where it compensates, its module becomes a graph.

        Raises:
            InputError: It should compensate, and there are no batches.
            UnsupportedError: The model cannot be traced, or a layer reads values that are not finite.
        """
        form = self._form(decision)
        rounding = _settings.complete(decision, self.defaults)["rounding"]
        if rounding == "compensated" or (rounding == "auto" and batches):
            self._compensate(model, decision, batches, form)
            return
        for name in decision.layers:
            attach(model.module, name, BinaryEncoder(form), self.name)

    def _compensate(
        self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]], form: BinaryForm
    ) -> None:
        graph, alone = captured(model, decision.layers, batches, f"{self.name} with rounding=compensated")
        solved = [name for name in alone if weight_of(graph, name)[1] is None]
        for name in decision.layers:
            if name not in solved:
                attach(graph, name, BinaryEncoder(form), self.name)

        def visit(name: str, read: Moments) -> None:
            layer, (weight, _) = layer_at(graph, name), weight_of(graph, name)
            bias = None if isinstance(layer, nn.Embedding) else layer.bias
            found = round_to_signs(weight, read if bias is None else read.centred(), form, Effort())
            if bias is not None:
                layer.bias = nn.Parameter((bias + bias_shift(weight, found, read)).to(bias.dtype))
            layer.weight = nn.Parameter(found.decode().reshape(layer.weight.shape).to(layer.weight.dtype))
            scale = found.scale.reshape(-1, found.scale.shape[-1]) if form.scaled else None
            attach(graph, name, BinaryEncoder(form, scale), self.name)

        walk_moments(graph, batches, solved, visit)

    def _form(self, decision: Decision) -> BinaryForm:
        settings = _settings.complete(decision, self.defaults)
        method = _settings.choice(settings, "method", METHODS)
        _settings.choice(settings, "granularity", GRANULARITIES)
        _settings.choice(settings, "rounding", ROUNDINGS)
        return BinaryForm(
            levels="ternary" if method == "ternary" else "binary",
            scaled=method != "sign",
            group_size=group_size_of(settings),
        )
