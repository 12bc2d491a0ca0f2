from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flyweight.errors import InputError
from flyweight.run.answers import check_answers_path, json_lines, write_answers

COLUMNS = {"label": ["cat", 'a "dog", ü'], "probability": [0.75, float("nan")], "box": [[1, 2], [3, 4]]}


def test_csv_has_a_header_and_quotes_what_it_must(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.csv", COLUMNS)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == (
        'label,probability,box\ncat,0.75,"[1, 2]"\n"a ""dog"", ü",nan,"[3, 4]"\n'
    )


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_holds_one_object_an_example_and_no_nan(tmp_path: Path, suffix: str) -> None:
    write_answers(tmp_path / f"a{suffix}", COLUMNS)
    text = (tmp_path / f"a{suffix}").read_text(encoding="utf-8")
    rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    assert rows == [
        {"label": "cat", "probability": 0.75, "box": [1, 2]},
        {"label": 'a "dog", ü', "probability": None, "box": [3, 4]},
    ]


def test_npz_holds_one_array_a_column_whatever_its_name(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.npz", {"file": ["x", "yz"], "allow_pickle": [[1.0], [2.0]]})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert stored["file"].tolist() == ["x", "yz"]
        assert stored["allow_pickle"].shape == (2, 1)


@pytest.mark.parametrize("values", [[[1], [1, 2]], [1, None]])
def test_npz_refuses_what_is_no_array(tmp_path: Path, values: list[object]) -> None:
    with pytest.raises(InputError, match="column 'c' holds"):
        write_answers(tmp_path / "a.npz", {"c": values})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_numpy_values_are_written_as_numbers(tmp_path: Path, suffix: str) -> None:
    write_answers(tmp_path / f"a{suffix}", {"c": [np.int64(3)]})
    assert "3" in (tmp_path / f"a{suffix}").read_text()


@pytest.mark.parametrize(
    ("name", "message"), [("a.xlsx", r"ends in \.csv"), ("a", r"ends in"), ("no/a.csv", "no folder")]
)
def test_a_path_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_answers_path(tmp_path / name)


@pytest.mark.parametrize("columns", [{}, {"a": [1], "b": [1, 2]}])
def test_columns_have_one_length(tmp_path: Path, columns: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="one length"):
        write_answers(tmp_path / "a.csv", columns)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl"])
def test_names_that_are_not_utf8_are_escaped(tmp_path: Path, name: str) -> None:
    write_answers(tmp_path / name, {"label": ["caf\udce9"]})
    assert "caf\\udce9" in (tmp_path / name).read_text()
    assert json.loads(json_lines({"label": ["caf\udce9"]})) == {"label": "caf\udce9"}
