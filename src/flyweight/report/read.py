"""Reads the report of a folder that ``compress`` wrote."""

from __future__ import annotations

from pathlib import Path

from flyweight._atomic import MANIFEST
from flyweight.core.analysis import Analysis, LayerLoss
from flyweight.core.report import Report, refused_path
from flyweight.errors import ArtifactError, InputError
from flyweight.report.json import MAX_REPORT_BYTES, from_json
from flyweight.report.wording import printable
from flyweight.report.write import REPORT_JSON

_NAMED = 5  # layers that a message names


def read_report(folder: Path) -> Report:
    """The report in ``folder``.

    Raises:
        InputError: There is no such folder, or no report in it.
        ArtifactError: The report is damaged, or of another version.
    """
    if not folder.is_dir():
        refused = refused_path(folder)
        known = f"{refused}, which was refused" if refused.is_dir() else "the folder that compress wrote"
        raise InputError(f"{folder} is not a folder; name {known}")
    path = folder / REPORT_JSON
    if not path.is_file():
        what = "was exported or streamed, not measured" if (folder / MANIFEST).is_file() else "is no artifact"
        raise InputError(
            f"{folder} holds no {REPORT_JSON}, as it {what}: name a folder that flyweight compress wrote"
        )
    if path.stat().st_size > MAX_REPORT_BYTES:
        raise ArtifactError(f"{path} is larger than {MAX_REPORT_BYTES} bytes")
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; flyweight compress writes it anew") from error


def analysis_of(report: Report, folder: Path) -> Analysis:
    """Where quality is lost.

    Raises:
        InputError: No layer is quantized, so nothing was analysed.
    """
    if report.analysis is None or not report.analysis.layers:
        raise InputError(
            f"no layer of {folder} is quantized, so there is no error to inspect; "
            "flyweight techniques lists what quantizes layers"
        )
    return report.analysis


def layer_called(analysis: Analysis, name: str, folder: Path) -> LayerLoss:
    """The layer of that name.

    Raises:
        InputError: No quantized layer has it.
    """
    found = next((layer for layer in analysis.layers if layer.name == name), None)
    if found is not None:
        return found
    known = [printable(layer.name) for layer in analysis.layers]
    more = ", ..." if len(known) > _NAMED else ""
    raise InputError(
        f"{folder} has no quantized layer {name!r}; it has {', '.join(known[:_NAMED])}{more}: "
        f"flyweight inspect {folder} --top {len(known)} lists them all"
    )
