from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sample_report import bare, sample

from flyweight.core.analysis import Analysis
from flyweight.errors import ArtifactError, InputError
from flyweight.report import read
from flyweight.report.json import to_json
from flyweight.report.read import analysis_of, layer_called, read_report


def _analysis() -> Analysis:
    found = sample().analysis
    assert found is not None
    return found


def test_a_report_that_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(to_json(sample()))
    assert read_report(tmp_path) == sample()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone is not a folder; name the folder that compress wrote"):
        read_report(tmp_path / "gone")


def test_a_folder_that_was_refused_is_named(tmp_path: Path):
    (tmp_path / "small-refused").mkdir()
    with pytest.raises(InputError, match=r"name .*small-refused, which was refused"):
        read_report(tmp_path / "small")


def test_a_folder_without_a_report_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no report\.json, as it is no artifact: name a"):
        read_report(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="as it was exported or streamed, not measured: name a folder that"):
        read_report(tmp_path)


def test_a_report_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    older = json.loads(to_json(sample())) | {"version": 1}
    (tmp_path / "report.json").write_text(json.dumps(older))
    with pytest.raises(
        ArtifactError, match=r"version is 1; this release reads 2; flyweight compress writes it anew"
    ):
        read_report(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]"])
def test_a_damaged_report_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"report\.json"):
        read_report(tmp_path)


def test_a_report_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_REPORT_BYTES", 10)
    (tmp_path / "report.json").write_text(to_json(sample()))
    with pytest.raises(ArtifactError, match="is larger than 10 bytes"):
        read_report(tmp_path)


def test_a_report_without_quantized_layers_has_nothing_to_inspect() -> None:
    empty = replace(sample(), analysis=replace(_analysis(), layers=()))
    for report in (bare(), empty):
        with pytest.raises(InputError, match="no layer of out is quantized, so there is no error to inspect"):
            analysis_of(report, Path("out"))


def test_a_layer_is_found_by_its_name_and_another_named_with_those_there_are() -> None:
    analysis = _analysis()
    name = analysis.layers[3].name
    assert layer_called(analysis, name, Path("out")) is analysis.layers[3]
    with pytest.raises(InputError, match=r"out has no quantized layer 'x'; it has stages\S+, .*--top 18"):
        layer_called(analysis, "x", Path("out"))
