"""Writes report.json and report.html, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from flyweight._atomic import write_text
from flyweight.core.report import Report
from flyweight.report.html import to_html
from flyweight.report.json import to_json

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def write_reports(report: Report, folder: Path) -> None:
    """Write both reports into an existing folder; both are made before either replaces its predecessor.

    Raises:
        InputError: The folder is missing or cannot be written to, or the disk is full.
        TypeError, ValueError: The report holds what report.json cannot, see `to_json`.
    """
    texts = {REPORT_JSON: to_json(report), REPORT_HTML: to_html(report)}
    for name, text in texts.items():
        write_text(folder / name, text)
