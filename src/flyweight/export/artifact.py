"""Writes everything a device needs of one model into a folder: model file, preprocessing files, manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import final

import flyweight
from flyweight import catalog
from flyweight.core.plan import Plan
from flyweight.core.protocols import Exporter
from flyweight.core.report import Artifact
from flyweight.evaluate.machine import versions
from flyweight.measure.profile import parameter_count, profile
from flyweight.model import Model
from flyweight.run.artifact import describe_files, open_artifact, read_manifest, write_manifest
from flyweight.run.manifest import Manifest, Status
from flyweight.run.onnxruntime import OnnxRuntime
from flyweight.settings import Settings
from flyweight.tensors.activation import ranges_span_batch


@final
@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an artifact's manifest says of where it comes from.

    Attributes:
        settings: Of the run.
        classes: Class names by index; () where answers are not classes.
    """

    settings: Settings
    classes: tuple[str, ...]


def exporter(format_name: str) -> Exporter:
    """The catalog's exporter of that name; raises ValueError for an unknown one."""
    made: Exporter = catalog.get("exporter", format_name)()
    return made


def pack(model: Model, plan: Plan, folder: Path, origin: Origin, status: Status) -> Artifact:
    """Write the artifact into ``folder``, which exists and is empty.

    Raises:
        UnsupportedError: The format cannot hold the model.
    """
    writer = exporter(origin.settings.format)
    writer.export(model, folder / writer.model_file)
    names = (writer.model_file, *(model.preprocessing.write_files(folder) if model.preprocessing else ()))
    bare = Artifact(path=folder, format=writer.format, model_file=writer.model_file, files={}, sha256="")
    session = OnnxRuntime().load(bare, threads=1)
    write_manifest(
        folder,
        Manifest(
            model=model.name,
            status=status,
            format=writer.format,
            model_file=writer.model_file,
            files=describe_files(folder, names),
            inputs=session.inputs,
            outputs=session.outputs,
            task=origin.settings.task,
            task_settings=origin.settings.task_settings,
            classes=origin.classes,
            preprocessing=model.preprocessing.to_dict() if model.preprocessing else None,
            plan=Plan(plan.model, plan.in_stage_order()).to_dict(),
            settings=origin.settings.to_dict(),
            versions=versions(),
            parameters=parameter_count(model),
            macs=profile(model).macs,
            examples_interact=ranges_span_batch(model.module),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            flyweight=flyweight.__version__,
        ),
    )
    return open_artifact(folder)


def mark(artifact: Artifact, status: Status) -> None:
    """Rewrite the manifest with another status."""
    write_manifest(artifact.path, replace(read_manifest(artifact.path), status=status))
