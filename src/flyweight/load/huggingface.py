"""Models in the layout of Hugging Face: a folder of config.json, safetensors weights and preprocessing files.

Text encoders give one embedding a text, pooled as sentence-transformers does it; classifiers of texts and of
images give logits. Weights in pickles are not read, and code that comes with a model is not run.

Limits: no decoders, no encoder-decoders, no image encoders, no dense layers after the pooling, no prompts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from flyweight._optional import require
from flyweight.errors import InputError, UnsupportedError
from flyweight.load.heads import ImageClassifier, SentenceEncoder, TextClassifier
from flyweight.load.huggingface_files import (
    CONFIG,
    TOKENIZER,
    class_names,
    image_settings,
    max_length,
    pooling_of,
    read_json,
)
from flyweight.load.pytorch import prepared

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PURPOSE = "loading Hugging Face models"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """A model and what its folder says about its inputs and outputs.

    Attributes:
        module: Of `flyweight.load.heads`, float32, in eval mode.
        preprocessing: As `flyweight.data.declared.declared_steps` takes it.
        classes: Names by index; () for an encoder.
    """

    module: nn.Module
    preprocessing: Mapping[str, object]
    classes: tuple[str, ...] = ()

    @property
    def embeds(self) -> bool:
        """Whether it is an encoder."""
        return isinstance(self.module, SentenceEncoder)


def is_hub_id(spec: str) -> bool:
    """Whether ``spec`` reads as ``organisation/name`` and is no path into a folder that is here."""
    return _HUB_ID.fullmatch(spec) is not None and not Path(spec).parent.exists()


def fetch(hub_id: str) -> Path:
    """The folder of a model from the Hugging Face hub: downloaded, or as it was downloaded before.

    Raises:
        InputError: There is no such model, or the hub cannot be reached.
        MissingDependency: transformers is not installed.
    """
    hub = require("huggingface_hub", extra="hf", purpose=_PURPOSE)
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:  # its own errors are of these
        raise InputError(f"there is no folder {hub_id}, and {_hub_failure(hub_id, error)}") from error


def _hub_failure(hub_id: str, error: Exception) -> str:
    errors = require("huggingface_hub.errors", extra="hf", purpose=_PURPOSE)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the Hugging Face hub asks for your consent before it gives {hub_id}: log in and give it there"
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return f"the Hugging Face hub has no model {hub_id} that is open to you"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return f"the Hugging Face hub cannot be reached: go online, or give a folder ({_line(error)})"
    return f"the Hugging Face hub did not give the model: {_line(error)}"


def load_folder(folder: Path, *, pairs: bool = False) -> Pretrained:
    """The model in a folder.

    Args:
        folder: Holds config.json and model.safetensors.
        pairs: An example is two texts (classification only).

    Raises:
        InputError: A file is missing or damaged, or weights are missing, of another shape, or not finite.
        UnsupportedError: It is another kind of model.
        MissingDependency: transformers is not installed.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no {CONFIG}; give a Hugging Face folder, or file.py:factory")
    config = read_json(folder / CONFIG)
    _check_kind(folder, config)
    architecture = _architecture(config)
    if architecture.endswith("ForImageClassification"):
        classifier = _loaded("AutoModelForImageClassification", folder)
        return _pretrained(ImageClassifier(classifier), folder, image_settings(folder), class_names(config))
    text = {"tokenizer": str(_tokenizer(folder)), "max_length": max_length(folder, config)}
    if architecture.endswith("ForSequenceClassification"):
        classifier = _loaded("AutoModelForSequenceClassification", folder)
        pair = {"pair": True, "token_type_ids": config.get("type_vocab_size", 0) > 1} if pairs else {}
        return _pretrained(TextClassifier(classifier), folder, text | pair, class_names(config))
    pooling, normalize = pooling_of(folder)
    encoder = _without_pooler(_loaded("AutoModel", folder, unused="pooler."))
    return _pretrained(SentenceEncoder(encoder, pooling, normalize=normalize), folder, text, ())


def _pretrained(
    module: nn.Module, folder: Path, preprocessing: Mapping[str, object], classes: tuple[str, ...]
) -> Pretrained:
    return Pretrained(module=prepared(module, str(folder)), preprocessing=preprocessing, classes=classes)


def _architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    architecture = _architecture(config)
    if config.get("is_encoder_decoder") or architecture.endswith("ForConditionalGeneration"):
        raise UnsupportedError(
            f"{folder} is an encoder-decoder ({architecture}); encoders and classifiers are supported"
        )
    if config.get("is_decoder") or architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise UnsupportedError(
            f"{folder} is a language model that generates text ({architecture}), which is not supported yet; "
            "encoders and classifiers are"
        )


def _tokenizer(folder: Path) -> Path:
    path = folder / TOKENIZER
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {TOKENIZER}; write it with save_pretrained(...) of its AutoTokenizer"
        )
    return path


def _loaded(auto_class: str, folder: Path, *, unused: str | None = None) -> nn.Module:
    """The model in eager attention, of which `torch.export` makes three quarters of the nodes SDPA gives.

    Args:
        auto_class: Its name in transformers.
        folder: The model's.
        unused: Weights with this prefix may be missing.
    """
    if not any(folder.glob("*.safetensors")):
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        found = f"only {pickles}, a pickle that is not read" if pickles else "no weights"
        raise InputError(f"{folder} holds {found}; write model.safetensors with save_pretrained(...)")
    transformers = require("transformers", extra="hf", purpose=_PURPOSE)
    load: Callable[..., Any] = getattr(transformers, auto_class).from_pretrained
    try:
        with _silent_transformers():
            module, told = load(
                folder,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype="float32",
            )
    except Exception as error:  # transformers raises whatever a malformed config leads it to
        raise InputError(f"{folder} cannot be loaded: {_line(error)}") from error
    missing = sorted(name for name in told["missing_keys"] if unused is None or not name.startswith(unused))
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(f"{folder}: {len(missing)} weights are missing from its safetensors: {shown}")
    loaded: nn.Module = module
    return loaded


def _without_pooler(encoder: nn.Module) -> nn.Module:
    """The encoder without the layer that is not used here, as ``add_pooling_layer=False`` makes it."""
    if "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters:
        encoder.register_module("pooler", None)
    return encoder


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Without its progress bars and load reports; what matters of them is told by `_loaded`."""
    log = require("transformers.utils.logging", extra="hf", purpose=_PURPOSE)
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :200
    ]
