"""What the JSON files beside a Hugging Face model say of its inputs, its pooling and its classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyweight.errors import InputError, UnsupportedError
from flyweight.load.heads import Pooling

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
MAX_JSON_BYTES = 64_000_000

# Their positions start behind the padding index, so two of the embeddings are never used for a token.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})
_NO_LIMIT = 1_000_000  # tokenizers without a limit write 1e30
_POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_MODE = "pooling_mode"  # of later sentence-transformers: one word, or a list of words
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_CROP_RATIO_BELOW = 384  # pixels; ConvNeXt's preprocessor crops smaller sizes from a larger resize
_CONVNEXT_RATIO = 224 / 256
_PIXEL_SCALE = 1 / 255


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: It is missing, too large, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold an object, got {type(raw).__name__}")
    return raw


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names by index from ``id2label``; () where the model gives no classes, or they have only numbers.

    Raises:
        InputError: The indices are not 0, 1, 2, ...
    """
    labels = config.get("id2label")
    if not isinstance(labels, dict) or config.get("problem_type") == "regression" or len(labels) < 2:
        return ()
    if set(labels) != {str(index) for index in range(len(labels))}:
        raise InputError(
            f"{CONFIG}: id2label must number the classes from 0, got {', '.join(list(labels)[:5])}, ..."
        )
    names = tuple(str(labels[str(index)]) for index in range(len(labels)))
    return () if names == tuple(f"LABEL_{index}" for index in range(len(names))) else names


def max_length(folder: Path, config: Mapping[str, Any]) -> int:
    """Tokens of one text: the limit of sentence-transformers, else the tokenizer's; within the model's.

    Raises:
        InputError: No file says it.
        UnsupportedError: Texts need lower case or a prompt that the tokenizer does not give them.
    """
    sentence, tokenizer = (
        _optional(folder / "sentence_bert_config.json"),
        _optional(folder / "tokenizer_config.json"),
    )
    _check_text_rules(folder, sentence, tokenizer)
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in _OFFSET_POSITIONS:
        positions -= 2
    said = sentence.get("max_seq_length")
    limits = [said] if isinstance(said, int) else [tokenizer.get("model_max_length")]
    found = [int(n) for n in (*limits, positions) if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    if not found:
        raise InputError(f"{folder} does not say how many tokens a text may have; give --max-length")
    return min(found)


def pooling_of(folder: Path) -> tuple[Pooling, bool]:
    """(pooling, whether embeddings are brought to length 1); the mean where no modules.json says otherwise.

    Raises:
        UnsupportedError: The pooling is another, or further layers follow it.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", False
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = {str(m["type"]).rpartition(".")[2]: folder / str(m["path"]) for m in modules}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is malformed: {error}") from error
    other = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if other:
        raise UnsupportedError(f"{path} puts a {other[0]} module after the encoder, which is not supported")
    pooling = _pooling(kinds["Pooling"] / CONFIG) if "Pooling" in kinds else "mean"
    return pooling, "Normalize" in kinds


def image_settings(folder: Path) -> dict[str, object]:
    """Preprocessing of images as preprocessor_config.json declares it.

    Raises:
        InputError: The file is missing or malformed.
        UnsupportedError: It asks for steps that are not known here.
    """
    path = folder / "preprocessor_config.json"
    raw = read_json(path)
    odd = next((key for key in ("do_pad", "rescale_offset", "do_flip_channel_order") if raw.get(key)), None)
    if odd is not None:
        raise UnsupportedError(f"{path} sets {odd}, which is not supported; preprocess the images beforehand")
    settings: dict[str, object] = {}
    if raw.get("do_resize"):
        settings |= _resize(raw, path)
    if raw.get("do_center_crop"):
        settings["crop"] = _side(raw.get("crop_size"), path)
    if raw.get("do_rescale", True):
        settings["rescale"] = float(raw.get("rescale_factor", _PIXEL_SCALE))
    if raw.get("do_normalize"):
        settings |= {"mean": raw.get("image_mean"), "std": raw.get("image_std")}
    return settings


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check_text_rules(folder: Path, sentence: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    if sentence.get("do_lower_case") and not tokenizer.get("do_lower_case"):
        raise UnsupportedError(
            f"{folder} asks for texts in lower case, which its tokenizer does not do; lower them"
        )
    if _optional(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise UnsupportedError(
            f"{folder} puts a prompt before each text, which is not supported; put it in the data"
        )


def _pooling(path: Path) -> Pooling:
    raw = read_json(path)
    chosen = [key for key, value in raw.items() if key.startswith("pooling_mode_") and value is True]
    if _MODE in raw:
        named = raw[_MODE] if isinstance(raw[_MODE], list) else [raw[_MODE]]
        chosen = [
            next((k for k, pooling in _POOLINGS.items() if pooling == name), str(name)) for name in named
        ]
    if len(chosen) == 1 and chosen[0] in _POOLINGS:
        return _POOLINGS[chosen[0]]
    raise UnsupportedError(
        f"{path} pools by {', '.join(chosen) or 'nothing'}; mean, cls and max alone are supported"
    )


def _resize(raw: Mapping[str, Any], path: Path) -> dict[str, object]:
    side, resample = _side(raw.get("size"), path), raw.get("resample", 2)
    ratio = raw.get(
        "crop_pct", _CONVNEXT_RATIO if "ConvNext" in str(raw.get("image_processor_type")) else None
    )
    if ratio is not None and isinstance(raw.get("size"), int):
        side = int(raw["size"])  # of the shortest edge in files that have this key, of both in all others
    if resample not in _RESAMPLING:
        raise UnsupportedError(
            f"{path} resamples by Pillow's filter {resample}; nearest, bilinear and bicubic are known"
        )
    settings: dict[str, object] = {"resize": side, "interpolation": _RESAMPLING[resample]}
    if isinstance(side, int) and isinstance(ratio, int | float) and ratio > 0:
        if side < _CROP_RATIO_BELOW:
            return settings | {"resize": int(side / ratio), "crop": side}
        return settings | {"resize": [side, side]}
    return settings


def _side(size: object, path: Path) -> int | list[int]:
    """A shortest edge, or [height, width]."""
    if isinstance(size, int):
        return [size, size]
    if isinstance(size, dict) and type(size.get("shortest_edge")) is int:
        return int(size["shortest_edge"])
    if isinstance(size, dict) and type(size.get("height")) is int and type(size.get("width")) is int:
        return [size["height"], size["width"]]
    raise InputError(f"{path} gives no usable size: {size!r:.80}")
