"""The manifest of an artifact: what its files are, what they take and give, and how they were made.

The JSON form is in docs/formats.md. A manifest comes from anywhere, so reading one trusts nothing in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, final

from flyweight._atomic import MANIFEST
from flyweight.core.json_text import parse_json
from flyweight.core.plan import Plan, Scalar
from flyweight.errors import ArtifactError

MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 16_000_000

Kind = TypeVar("Kind")
Status = Literal["shipped", "refused", "exported"]
STATUSES: tuple[Status, ...] = ("shipped", "refused", "exported")
DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
ANY_SIZE = "?"  # a dimension without a name, which may be of any size

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNPORTABLE = re.compile(r"[\x00-\x1f\x7f\\:*?\"<>|\ud800-\udfff]")  # in a file name, on some system


@final
@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 digest of one file.

    Raises:
        ValueError: The size is negative, or the digest is not 64 lower-case hexadecimal digits.
    """

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise ValueError(f"bytes must be at least 0, got {self.bytes}")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits, got {self.sha256[:80]!r}")


@final
@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: As the model file calls it.
        dtype: A name of `DTYPES`.
        shape: Size of each axis; a name where it varies, equal names being equal sizes in one call.

    Raises:
        ValueError: The name is empty, the dtype unknown, or a size negative.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a tensor has no name")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype of {self.name!r} is {self.dtype!r}; known: {', '.join(sorted(DTYPES))}")
        for size in self.shape:
            if size == "" or (isinstance(size, int) and size < 0):
                raise ValueError(f"shape of {self.name!r} must hold sizes from 0 or names, got {size!r}")

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


@final
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that running an artifact needs besides its files, and where it comes from.

    Attributes:
        model: Name of the model.
        status: ``"shipped"`` (measured, fits), ``"refused"`` (measured, does not fit) or ``"exported"``
            (not measured).
        format: Name of the exporter, ``"onnx"``.
        model_file: One of ``files``.
        files: Every file the device needs but the manifest itself, by its name inside the folder, with ``/``.
        inputs: In the model file's order.
        outputs: In the model file's order.
        task: A name of the catalog, or ``file.py:metric``, whose file is not part of the artifact.
        task_settings: Keyword arguments of the task.
        classes: Class names by index; () where answers are not classes.
        preprocessing: ``Preprocessing.to_dict()``; None where the caller does it.
        plan: ``Plan.to_dict()`` of what was done.
        settings: The settings of the run, as in flyweight.yaml.
        versions: Package to version.
        parameters: Numbers in the model's weights, biases and norms.
        macs: Multiply-accumulates of one forward pass at batch 1, in the weighted layers.
        examples_interact: Whether an answer depends on the other examples of its call, as it does where a
            range found at run time spans the batch; such a model is given one example a call.
        created: UTC, ISO 8601.
        flyweight: Version that wrote it.

    Raises:
        ValueError: A file name leaves the folder, ``model_file`` is not among the files, there is no output,
            two tensors have the same name, a number is negative, or a value is not of those above.
    """

    model: str
    status: Status
    format: str
    model_file: str
    files: Mapping[str, FileEntry]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    task: str
    task_settings: Mapping[str, Scalar] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    preprocessing: Mapping[str, object] | None = None
    plan: Mapping[str, object]
    settings: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    parameters: int
    macs: int
    examples_interact: bool
    created: str
    flyweight: str

    def __post_init__(self) -> None:
        if self.model_file not in self.files:
            raise ValueError(f"model_file {self.model_file!r} is not among the files")
        if not self.outputs:
            raise ValueError("outputs are empty: the model computes nothing")
        if self.parameters < 0 or self.macs < 0:
            raise ValueError(f"parameters and macs must be at least 0, got {self.parameters} and {self.macs}")
        for name in self.files:
            _check_file_name(name)
        for kind, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len({spec.name for spec in specs}) != len(specs):
                raise ValueError(f"two {kind} have the same name")
        Plan.from_dict(self.plan)

    def to_json(self) -> str:
        """Readable, diffable text; the inverse of `from_json`.

        Raises:
            ValueError: A value has no JSON form: NaN, or an object of another kind.
        """
        first = {
            "format_version": MANIFEST_VERSION,
            "flyweight": self.flyweight,
        }  # `_atomic` looks for the second
        try:
            return json.dumps(first | asdict(self), indent=1, allow_nan=False) + "\n"
        except TypeError as error:
            raise ValueError(f"manifest of {self.model!r}: {error}") from error

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read a manifest.

        Raises:
            ArtifactError: `parse_json` refuses the text, or it is of another version, or not a manifest.
        """
        try:
            raw = parse_json(text, MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
        except ValueError as error:
            raise ArtifactError(str(error)) from error
        try:
            return _manifest(_mapping(raw, "it"))
        except ValueError as error:
            raise ArtifactError(f"{MANIFEST} is damaged: {' '.join(str(error).split()):.300}") from error


def _manifest(raw: Mapping[str, object]) -> Manifest:
    version = raw.get("format_version")
    if type(version) is not int or version != MANIFEST_VERSION:
        raise ArtifactError(
            f"{MANIFEST} is of format version {version!r:.20}, and this release reads {MANIFEST_VERSION}: "
            "update flyweight, or make the artifact again"
        )
    _check_keys(raw, ("format_version", *_READERS), "it")
    values: dict[str, Any] = {name: read(raw[name], name) for name, read in _READERS.items()}
    return Manifest(**values)


def _check_file_name(name: str) -> None:
    safe = not _UNPORTABLE.search(name) and all(part.strip(". ") for part in name.split("/"))
    if not safe or name == MANIFEST:
        raise ValueError(f"{name!r} cannot be the name of a file in an artifact")


def _check_keys(raw: Mapping[str, object], known: Collection[str], where: str) -> None:
    missing, unknown = [key for key in known if key not in raw], [key for key in raw if key not in known]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown:
        raise ValueError(f"{where} holds unknown keys: {', '.join(map(repr, unknown))}")


def _typed(raw: object, where: str, kind: type[Kind], words: str) -> Kind:
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise ValueError(f"{where} must be {words}, got {type(raw).__name__}")
    return raw


def _mapping(raw: object, where: str) -> dict[str, object]:
    return _typed(raw, where, dict, "an object")


def _optional_mapping(raw: object, where: str) -> dict[str, object] | None:
    return None if raw is None else _mapping(raw, where)


def _list(raw: object, where: str) -> list[object]:
    return _typed(raw, where, list, "an array")


def _text(raw: object, where: str) -> str:
    return _typed(raw, where, str, "text")


def _whole(raw: object, where: str) -> int:
    return _typed(raw, where, int, "a whole number")


def _bool(raw: object, where: str) -> bool:
    return _typed(raw, where, bool, "true or false")


def _scalar(raw: object, where: str) -> Scalar:
    if not isinstance(raw, bool | int | float | str):
        raise ValueError(f"{where} must be a bool, number or text, got {type(raw).__name__}")
    return raw


def _status(raw: object, where: str) -> Status:
    for status in STATUSES:
        if raw == status:
            return status
    raise ValueError(f"{where} must be one of {', '.join(STATUSES)}, got {raw!r:.80}")


def _texts(raw: object, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in _list(raw, where))


def _named_texts(raw: object, where: str) -> dict[str, str]:
    return {key: _text(value, f"{where}.{key}") for key, value in _mapping(raw, where).items()}


def _named_scalars(raw: object, where: str) -> dict[str, Scalar]:
    return {key: _scalar(value, f"{where}.{key}") for key, value in _mapping(raw, where).items()}


def _files(raw: object, where: str) -> dict[str, FileEntry]:
    return {name: _file(entry, f"{where}.{name}") for name, entry in _mapping(raw, where).items()}


def _file(raw: object, where: str) -> FileEntry:
    entry = _mapping(raw, where)
    _check_keys(entry, ("bytes", "sha256"), where)
    return FileEntry(_whole(entry["bytes"], where), _text(entry["sha256"], where))


def _tensors(raw: object, where: str) -> tuple[TensorSpec, ...]:
    return tuple(_tensor(item, f"{where}[{i}]") for i, item in enumerate(_list(raw, where)))


def _tensor(raw: object, where: str) -> TensorSpec:
    entry = _mapping(raw, where)
    _check_keys(entry, ("name", "dtype", "shape"), where)
    shape = tuple(
        size if isinstance(size, str) else _whole(size, f"{where}.shape")
        for size in _list(entry["shape"], where)
    )
    return TensorSpec(_text(entry["name"], where), _text(entry["dtype"], where), shape)


_READERS: Mapping[str, Callable[[object, str], object]] = {
    "flyweight": _text,
    "model": _text,
    "status": _status,
    "format": _text,
    "model_file": _text,
    "files": _files,
    "inputs": _tensors,
    "outputs": _tensors,
    "task": _text,
    "task_settings": _named_scalars,
    "classes": _texts,
    "preprocessing": _optional_mapping,
    "plan": _mapping,
    "settings": _mapping,
    "versions": _named_texts,
    "parameters": _whole,
    "macs": _whole,
    "examples_interact": _bool,
    "created": _text,
}
