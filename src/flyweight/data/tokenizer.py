"""A tokenizer as an artifact ships it: a small compressed file that tokenizes exactly as the original.

The file is tokenizer.json of Hugging Face's ``tokenizers`` in xz, without white space, without the ids of a
vocabulary where they count up from 0, and without truncation and padding, which belong to the step. Texts are
tokenized exactly as by the original; MiniLM's 466 247 bytes become 97 900.

Limits: what a malicious definition makes ``tokenizers`` do is not bounded here: its regular expressions may
run long, and a template that names unknown tokens stops the process with a Rust panic.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from flyweight._optional import require
from flyweight.core.json_text import parse_json
from flyweight.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json.xz"
MAX_STORED_BYTES = 64_000_000
MAX_DOCUMENT_BYTES = 256_000_000  # the largest public vocabularies (256 k entries) are 34 MB of JSON
_DECODER_MEMORY_BYTES = 256_000_000  # xz's own highest preset takes 65 MB

# Context of 4 bits and no alignment suit text; MiniLM 97 900 bytes against 98 212 of the plain preset.
_XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


@final
@dataclass(frozen=True)
class TokenizerFile:
    """The definition of a tokenizer.

    Attributes:
        document: The stored JSON text, as `from_json` makes it.
    """

    document: str

    @staticmethod
    def from_json(text: str) -> TokenizerFile:
        """The definition in the text of a tokenizer.json.

        Raises:
            InputError: It is not one.
        """
        try:
            raw = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"the tokenizer is not JSON: {error}") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
            raise InputError("the tokenizer is not a tokenizer.json: it holds no model")
        definition = TokenizerFile(
            _compact(raw | {"truncation": None, "padding": None, "model": _without_ids(raw["model"])})
        )
        try:
            definition.open()
        except ArtifactError as error:
            raise InputError(str(error)) from error
        return definition

    @staticmethod
    def from_file(path: Path) -> TokenizerFile:
        """The definition in a tokenizer.json.

        Raises:
            InputError: The file is missing, too large, or not a tokenizer.
        """
        return TokenizerFile.from_json(read_json_text(path))

    @staticmethod
    def from_folder(folder: Path) -> TokenizerFile:
        """What `write` stored in ``folder``.

        Raises:
            ArtifactError: The file is missing, damaged or too large.
        """
        path = folder / TOKENIZER_FILE
        try:
            if path.stat().st_size > MAX_STORED_BYTES:
                raise ArtifactError(f"{path} is larger than {MAX_STORED_BYTES} bytes")
            stored = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"cannot read the tokenizer {path}: {error.strerror}") from error
        return TokenizerFile(_decompressed(stored, path))

    @property
    def sha256(self) -> str:
        """Digest of the document."""
        return hashlib.sha256(self.document.encode()).hexdigest()

    @cached_property
    def stored(self) -> bytes:
        """The document as it is stored."""
        return lzma.compress(self.document.encode(), check=lzma.CHECK_CRC64, filters=_XZ_FILTERS)

    def write(self, folder: Path) -> str:
        """Write the stored form to ``folder``, atomically; returns the file's name."""
        temporary = folder / f".{TOKENIZER_FILE}.part"
        with temporary.open("wb") as file:
            file.write(self.stored)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / TOKENIZER_FILE)
        return TOKENIZER_FILE

    def open(self) -> Tokenizer:
        """A new tokenizer that neither truncates nor pads.

        Raises:
            ArtifactError: ``tokenizers`` does not accept the definition.
            MissingDependency: ``tokenizers`` is not installed.
        """
        tokenizers = require("tokenizers", extra="hf", purpose="tokenizing text")
        text = _with_ids(self.document)
        try:
            opened: Tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises Exception itself for a malformed file
            raise ArtifactError(f"the tokenizer's definition is malformed: {error}") from error
        return opened


def read_json_text(path: Path) -> str:
    """The text of a JSON file.

    Raises:
        InputError: It is missing, too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InputError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read the tokenizer {path}: {error.strerror}; give the path of a tokenizer.json"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; give the path of a tokenizer.json") from error


def _compact(raw: Mapping[str, Any]) -> str:
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":"))


def _without_ids(model: Mapping[str, Any]) -> dict[str, Any]:
    """``model`` with its vocabulary as a list where ids count up from 0, else as it is."""
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        return dict(model)
    if set(vocabulary.values()) != set(range(len(vocabulary))):
        return dict(model)
    return {**model, "vocab": sorted(vocabulary, key=vocabulary.__getitem__)}


def _with_ids(document: str) -> str:
    """The tokenizer.json of a stored document.

    Raises:
        ArtifactError: The document is malformed.
    """
    try:
        raw: Any = parse_json(document, "the stored tokenizer", max_bytes=MAX_DOCUMENT_BYTES)
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict):
        raise ArtifactError("the stored tokenizer holds no model")
    vocabulary = model.get("vocab")
    # A Unigram vocabulary is a list of [token, score] by nature and stays one.
    if not (isinstance(vocabulary, list) and vocabulary and isinstance(vocabulary[0], str)):
        return document
    if not all(isinstance(token, str) for token in vocabulary) or len(set(vocabulary)) != len(vocabulary):
        raise ArtifactError(
            "the stored tokenizer's vocabulary holds a token twice, or something else than text"
        )
    return _compact(
        raw | {"model": model | {"vocab": {token: index for index, token in enumerate(vocabulary)}}}
    )


def _decompressed(stored: bytes, path: Path) -> str:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_MEMORY_BYTES)
    try:
        raw = decoder.decompress(stored, max_length=MAX_DOCUMENT_BYTES)
        if not decoder.eof or decoder.unused_data:
            raise ArtifactError(f"{path} is cut short, too large or followed by something else")
        return raw.decode()
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
