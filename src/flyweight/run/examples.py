"""New examples for an artifact, read as the data it was made with were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flyweight.data.examples import Examples
from flyweight.data.load import open_inputs
from flyweight.data.preprocessing import Preprocessing
from flyweight.data.roles import Expected
from flyweight.errors import ArtifactError
from flyweight.run.artifact import read_manifest
from flyweight.run.manifest import Manifest
from flyweight.settings import DataSettings


def open_examples(artifact: str | Path, spec: str | Path, columns: Sequence[str] = ()) -> Examples:
    """Inputs to run an artifact on.

    Args:
        artifact: Its manifest says what kind of data it takes, and which columns it was made with.
        spec: As `flyweight.data.load.open_inputs` takes it.
        columns: Columns of a table that are read instead of those.

    Raises:
        ArtifactError: The artifact is damaged.
        InputError: There is no such artifact, or the data cannot be read, or are of another kind.
    """
    manifest = read_manifest(artifact)
    return open_inputs(
        spec, DataSettings(inputs=tuple(columns)), expected=_expected(manifest, Path(artifact))
    )


def _expected(manifest: Manifest, folder: Path) -> Expected:
    inputs, target = manifest.settings.get("inputs") or [], manifest.settings.get("target")
    if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs):
        raise ArtifactError(f"{folder} cannot be used: settings.inputs must be a list of names")
    if not isinstance(target, str | None):
        raise ArtifactError(f"{folder} cannot be used: settings.target must be a name")
    preprocessing = manifest.preprocessing
    kind = None if preprocessing is None else Preprocessing.from_dict(preprocessing, folder).takes
    return Expected(kind=kind, inputs=tuple(inputs), target=target)
