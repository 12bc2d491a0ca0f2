from __future__ import annotations

import os
from pathlib import Path

import pytest
from sample_report import bare, hostile, sample

from flyweight.errors import InputError
from flyweight.report.json import from_json
from flyweight.report.write import REPORT_HTML, REPORT_JSON, write_reports


def test_both_reports_are_written_and_nothing_else(tmp_path: Path) -> None:
    write_reports(sample(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [REPORT_HTML, REPORT_JSON]
    assert from_json((tmp_path / REPORT_JSON).read_text(encoding="utf-8")) == sample()
    assert (tmp_path / REPORT_HTML).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_names_that_cannot_be_encoded_are_written(tmp_path: Path) -> None:
    write_reports(hostile("\udcff"), tmp_path)
    assert from_json((tmp_path / REPORT_JSON).read_text(encoding="utf-8")).model == "\udcff"


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / REPORT_JSON).write_text("old", encoding="utf-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"report\.json"):
        write_reports(bare(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [REPORT_JSON]
    assert (tmp_path / REPORT_JSON).read_text(encoding="utf-8") == "old"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        write_reports(bare(), tmp_path / "absent")
