"""Keys and values of causal self-attention rounded to 2 to 8 bits, as a quantized cache holds them.

The layers of a decision are those that put out keys and values; of others that it names, nothing changes.
Keys are rounded where caches hold them, behind rotary embeddings, and each token sees what it would see if
tokens came one after the other. Encoders and attention to another sequence are left as they are: whether an
attention is causal is looked up in its weights on the example inputs. All of it runs in PyTorch alone.

Source: Liu et al. 2024, arXiv:2402.02750 (KIVI), sections 3.2 and 3.3: keys by channel, values by token,
ranges found at run time.
Differs: see `flyweight.tensors.cache`.
Limits: Of attention that caches something smaller and makes keys of it (DeepSeek's latent), what is rounded
is the keys. Scores of more than one product, as with learned relative positions, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast, final

from torch import Tensor, fx

from flyweight.channels.attention import KEYS, VALUES, Attention, Attentions, Read, attentions
from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import NothingFound, UnsupportedError
from flyweight.measure.calibrate import in_graph_order
from flyweight.measure.graph import capture
from flyweight.techniques import _settings
from flyweight.tensors.activation import highest_code
from flyweight.tensors.cache import (
    KEY_GRANULARITIES,
    CachedAttention,
    CachedScores,
    CacheForm,
    CacheRounding,
    KeyGranularity,
)

if TYPE_CHECKING:
    from flyweight.model import Model


@final
class KVCache:
    """See the module's docstring.

    Settings: ``key_bits`` and ``value_bits`` 2..8; ``key_granularity``: ``channel`` (a scale for each channel
    and ``cache_group_size`` tokens) or ``token`` (one for each token and ``cache_group_size`` channels of a
    head, as values have it); ``cache_symmetric``.
    """

    name = "kv_cache"
    stage = Stage.CACHE
    defaults: Mapping[str, Scalar] = {
        "key_bits": 8,
        "value_bits": 8,
        "key_granularity": "channel",
        "cache_symmetric": False,
        "cache_group_size": 32,
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """Every linear layer, at 8 bits: which of them put out keys and values, the graph will tell."""
        for layer in profile.layers:
            if layer.op == "linear":
                yield Decision(self.name, (layer.name,), self.stage, {})

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range; nothing that is stored changes."""
        _forms(decision)
        return profile

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """`apply_together` with one decision."""
        self.apply_together(model, (decision,), batches)

    def apply_together(
        self, model: Model, decisions: Sequence[Decision], batches: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Change ``model`` in place; its module becomes a graph. Needs no batches.

        Raises:
            NothingFound: No causal self-attention is found, or none whose keys or values are of these layers.
            UnsupportedError: The model cannot be traced, or layers that make the same keys or values together
                are not in one decision.
        """
        graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
        found = attentions(graph, in_graph_order(graph, model.example_inputs))
        forms = {name: _forms(decision) for decision in decisions for name in decision.layers}
        chosen = [
            (attention, _key_rounding(attention.keys, forms), _value_rounding(attention.values, forms))
            for attention in found.causal
        ]
        if not any(keys or values for _, keys, values in chosen):
            raise NothingFound(_nothing(found, model.name))
        for attention, keys, values in chosen:
            if values is not None:
                _round_argument(graph, attention.sums, VALUES[attention.is_fused], values)
            if keys is not None:
                _round_keys(graph, attention, keys)
        graph.graph.lint()
        graph.recompile()
        model.module = graph


_Forms = tuple[CacheForm, CacheForm]  # of keys, of values


def _forms(decision: Decision) -> _Forms:
    settings = _settings.complete(decision, KVCache.defaults)
    for key in ("key_bits", "value_bits"):
        try:
            highest_code(cast("int", settings[key]))
        except ValueError:
            raise ValueError(f"{key} must be in 2..8, got {settings[key]}") from None
    if cast("int", settings["cache_group_size"]) < 1:
        raise ValueError(f"cache_group_size must be at least 1, got {settings['cache_group_size']}")
    granularity = _settings.choice(settings, "key_granularity", KEY_GRANULARITIES)
    keys = CacheForm(
        bits=cast("int", settings["key_bits"]),
        granularity=cast("KeyGranularity", granularity),
        symmetric=bool(settings["cache_symmetric"]),
        group_size=cast("int", settings["cache_group_size"]),
    )
    return keys, replace(keys, bits=cast("int", settings["value_bits"]), granularity="token")


def _key_rounding(keys: Read, forms: Mapping[str, _Forms]) -> CacheRounding | None:
    found = _of_layers(keys, forms)
    return None if found is None else CacheRounding(found[0], heads=keys.heads, size=keys.size)


def _value_rounding(values: Read, forms: Mapping[str, _Forms]) -> CacheRounding | None:
    found = _of_layers(values, forms)
    return None if found is None else CacheRounding(found[1], heads=values.heads, size=values.size)


def _of_layers(read: Read, forms: Mapping[str, _Forms]) -> _Forms | None:
    """How it is rounded; None where the plan names none of its layers."""
    first, *others = (forms.get(name) for name in read.layers)
    if any(other != first for other in others):
        names = " and ".join(map(repr, read.layers))
        raise UnsupportedError(
            f"layers {names} make what one attention keeps together: kv_cache needs all of them in the plan, "
            "with the same settings, or none"
        )
    return first


def _nothing(found: Attentions, model: str) -> str:
    if found.causal:
        first = found.causal[0]
        layers = dict.fromkeys((*first.keys.layers, *first.values.layers))
        return (
            f"kv_cache finds none of the layers that put out keys or values of model {model!r} in the plan: "
            f"the first are {' and '.join(map(repr, layers))}"
        )
    reason = f": {found.others[0]}" if found.others else ""
    return f"kv_cache finds no causal self-attention in model {model!r}{reason}"


def _round_keys(graph: fx.GraphModule, attention: Attention, rounding: CacheRounding) -> None:
    if not attention.is_fused:
        _replace(graph, attention.scores, CachedScores(rounding))
    elif rounding.form.granularity == "token":
        _round_argument(graph, attention.scores, KEYS, rounding)
    else:
        _replace(graph, attention.scores, CachedAttention(rounding))


def _round_argument(graph: fx.GraphModule, reader: fx.Node, at: int, rounding: CacheRounding) -> None:
    """In place, and at this place alone: keys may be values too."""
    name, read = _add(graph, rounding), cast("fx.Node", reader.args[at])
    with graph.graph.inserting_before(reader):
        call = graph.graph.call_module(name, (read,))
    call.meta = dict(read.meta)
    reader.update_arg(at, call)


def _replace(graph: fx.GraphModule, node: fx.Node, module: CachedScores | CachedAttention) -> None:
    """In place; what read ``node`` reads the module's output."""
    name = _add(graph, module)
    with graph.graph.inserting_before(node):
        call = graph.graph.call_module(name, node.args, dict(node.kwargs))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.graph.erase_node(node)


def _add(graph: fx.GraphModule, module: CacheRounding | CachedScores | CachedAttention) -> str:
    taken = sum(name.startswith("cache_") for name, _ in graph.named_children())
    graph.add_submodule(f"cache_{taken}", module)
    return f"cache_{taken}"
