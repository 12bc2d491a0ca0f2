from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_report import bare, hostile, sample

from flyweight.core import analysis as core_analysis
from flyweight.core import report as core_report
from flyweight.core.report import REPORT_VERSION, Latency, Report
from flyweight.errors import ArtifactError
from flyweight.report import json as report_json
from flyweight.report.json import from_json, to_json

_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def _plain(declared: Any) -> st.SearchStrategy[Any]:
    """The JSON form of every value of a type that a report may hold."""
    arguments = get_args(declared)
    if dataclasses.is_dataclass(declared):
        return st.fixed_dictionaries({name: _plain(hint) for name, hint in get_type_hints(declared).items()})
    if type(None) in arguments:
        return st.none() | _plain(arguments[0])
    if get_origin(declared) is tuple:
        return st.lists(_plain(arguments[0]), max_size=2)
    if get_origin(declared) is Mapping:
        return st.dictionaries(st.text(), _plain(arguments[1]), max_size=2)
    return {float: _FINITE, object: _JSON, int: st.integers(), str: st.text(), bool: st.booleans()}[declared]


@given(plain=_plain(Report))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_report_is_read_and_written_exactly(plain: dict[str, Any]) -> None:
    text = json.dumps({"version": REPORT_VERSION, **plain})
    report = from_json(text)
    assert json.loads(to_json(report)) == json.loads(text)
    assert from_json(to_json(report)) == report


@pytest.mark.parametrize("report", [sample(), bare(), hostile("\ud800\x00 <b>")])
def test_samples_are_read_back_exactly(report: Report) -> None:
    assert from_json(to_json(report)) == report


def test_text_is_ascii_with_the_version_first() -> None:
    text = to_json(hostile("naïve 名前"))
    assert text.isascii()
    assert next(iter(json.loads(text))) == "version"


def test_whole_numbers_are_read_as_floats_where_a_float_is_declared() -> None:
    raw = json.loads(to_json(sample()))
    raw["layers"][0]["weight_bits"] = 8
    bits = from_json(json.dumps(raw)).layers[0].weight_bits
    assert isinstance(bits, float)


def test_tuples_in_settings_come_back_as_lists() -> None:
    report = dataclasses.replace(sample(), settings={"techniques": ("static_int8",)})
    assert from_json(to_json(report)).settings == {"techniques": ["static_int8"]}


def _paths(raw: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value, but inside settings, where anything is allowed."""
    if path:
        yield path
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, item in items:
        if path != ("settings",):
            yield from _paths(item, (*path, key))


def _changed(raw: Any, path: tuple[str | int, ...], value: object) -> str:
    copied = json.loads(json.dumps(raw))
    parent = copied
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return json.dumps(copied)


def _as_text(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


_RAW = json.loads(to_json(sample(layers=2, rounds=2)))
_PATHS = list(_paths(_RAW))


def test_a_value_of_the_wrong_type_is_refused_wherever_it_is() -> None:
    for path in _PATHS:
        wrong = "wrong" if _is_number(path) else 3.5
        with pytest.raises(ArtifactError, match=re.escape(_as_text(path))):
            from_json(_changed(_RAW, path, wrong))


def _is_number(path: tuple[str | int, ...]) -> bool:
    value = _RAW
    for key in path:
        value = value[key]
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def test_a_number_that_is_not_finite_is_refused_with_its_key_path() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        for path in (("comparison", "quality_drop", "low"), ("settings", "budget", "quality_drop")):
            with pytest.raises(ArtifactError, match=f"{re.escape(_as_text(path))} must be finite"):
                from_json(_changed(_RAW, path, value))


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400])
def test_a_number_beyond_float64_is_refused(number: str) -> None:
    text = re.sub(r'"size_ratio": [^,]+', f'"size_ratio": {number}', json.dumps(_RAW))
    with pytest.raises(ArtifactError, match=r"comparison\.size_ratio must be finite"):
        from_json(text)


def test_a_missing_key_is_refused_wherever_it_is_missing() -> None:
    for path in (
        p
        for p in _PATHS
        if isinstance(p[-1], str) and not set(p) & {"files", "versions", "machine", "input_shapes"}
    ):
        copied = json.loads(json.dumps(_RAW))
        parent = copied
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        with pytest.raises(ArtifactError):
            from_json(json.dumps(copied))


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"compressed\.latency\.p99_s is not a key"):
        from_json(_changed(_RAW, ("compressed", "latency", "p99_s"), 0.1))


def test_true_is_not_a_number() -> None:
    for path in (("compressed", "macs"), ("compressed", "latency", "p50_s")):
        with pytest.raises(ArtifactError, match=r"got true or false"):
            from_json(_changed(_RAW, path, True))


@pytest.mark.parametrize("version", [0, REPORT_VERSION + 1, "1", True, 1.0, None])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(ArtifactError, match="version"):
        from_json(_changed(_RAW, ("version",), version))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"version": 1, "version": 1}',
        "[" * 100_000,
        '{"version": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_not_a_report_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError):
        from_json(text)


def test_a_text_too_long_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_json, "MAX_REPORT_BYTES", 10)
    with pytest.raises(ArtifactError, match="larger than 10 bytes"):
        from_json(to_json(sample(layers=1, rounds=1)))


def test_a_value_json_has_no_type_for_is_not_written() -> None:
    for value in (np.int64(3), Path("x")):
        with pytest.raises(TypeError, match=r"settings\.budget\[0\] is of type"):
            to_json(dataclasses.replace(sample(), settings={"budget": [value]}))
    with pytest.raises(TypeError, match="keys must be text"):
        to_json(dataclasses.replace(sample(), settings={"a": {1: 2}}))


def test_a_measurement_that_is_not_finite_is_not_written() -> None:
    latency = Latency(p50_s=float("nan"), p95_s=1.0, samples_s=(), input_shapes={}, threads=1)
    original = dataclasses.replace(sample().original, latency=latency)
    with pytest.raises(ValueError, match=r"original\.latency\.p50_s must be finite"):
        to_json(dataclasses.replace(sample(), original=original))


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = text.partition("## report.json")[2]
    declared = {**vars(core_report), **vars(core_analysis)}.values()
    values = [v for v in declared if dataclasses.is_dataclass(v) and v is not core_report.Artifact]
    missing = [
        f"{v.__name__}.{f.name}"
        for v in values
        for f in dataclasses.fields(v)
        if f"`{f.name}`" not in section
    ]
    assert not missing
