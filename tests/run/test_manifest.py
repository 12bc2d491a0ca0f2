from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import manifest

from flyweight.errors import ArtifactError
from flyweight.run.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, TensorSpec

FILES = {"model.onnx": FileEntry(10, "0" * 64), "assets/tokenizer.json": FileEntry(0, "f" * 64)}
WHOLE = manifest(files=FILES, preprocessing={"version": 1, "steps": []}, classes=("Käfer", "\ud800", "犬"))


def raw(**changes: Any) -> dict[str, Any]:
    return json.loads(WHOLE.to_json()) | changes


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in paths(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def test_a_manifest_survives_json() -> None:
    assert Manifest.from_json(WHOLE.to_json()) == WHOLE


def test_the_json_form_begins_with_what_identifies_it() -> None:
    assert list(raw())[:2] == ["format_version", "flyweight"]


@pytest.mark.parametrize("version", [0, 2, True, "1", None])
def test_another_version_is_refused_whatever_else_it_holds(version: object) -> None:
    with pytest.raises(ArtifactError, match=r"format version .* update flyweight"):
        Manifest.from_json(json.dumps({"format_version": version, "new": 1}))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../../b", "/a", "a//b", "a/", "a\\b", "C:a", "a\0", "a/. ", "\ud800"]
)
def test_a_file_name_that_may_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be the name of a file"):
        Manifest.from_json(json.dumps(raw(files=raw()["files"] | {name: {"bytes": 0, "sha256": "0" * 64}})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "unknown keys: 'extra'"),
        ({"files": {}}, "model_file 'model.onnx' is not among the files"),
        ({"files": {"model.onnx": {"bytes": 1}}}, "files.model.onnx lacks sha256"),
        ({"files": {"model.onnx": {"bytes": -1, "sha256": "0" * 64}}}, "at least 0"),
        ({"files": {"model.onnx": {"bytes": 1.0, "sha256": "0" * 64}}}, "whole number"),
        ({"files": {"model.onnx": {"bytes": 1, "sha256": "0" * 63 + "G"}}}, "64 hexadecimal digits"),
        ({"files": raw()["files"] | {"manifest.json": {"bytes": 1, "sha256": "0" * 64}}}, "name of a file"),
        ({"inputs": [{"name": "x", "dtype": "object", "shape": []}]}, "dtype of 'x' is 'object'"),
        ({"inputs": [{"name": "x", "dtype": "int8", "shape": [-1]}]}, "sizes from 0"),
        ({"inputs": [{"name": "x", "dtype": "int8", "shape": [True]}]}, "whole number"),
        ({"inputs": [{"name": "", "dtype": "int8", "shape": []}]}, "no name"),
        ({"inputs": [{"name": "x", "dtype": "int8", "shape": []}] * 2}, "two inputs have the same name"),
        ({"outputs": []}, "computes nothing"),
        ({"status": "fine"}, "status must be one of"),
        ({"parameters": -1}, "at least 0"),
        ({"macs": None}, "whole number"),
        ({"classes": ["a", 1]}, "text"),
        ({"task_settings": {"top_k": [1]}}, "task_settings.top_k"),
        ({"plan": {}}, "plan version"),
        ({"preprocessing": []}, "preprocessing must be an object"),
    ],
)  # fmt: skip
def test_what_is_not_a_manifest_is_refused_with_the_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(json.dumps(raw(**changes)))


@pytest.mark.parametrize("key", sorted(set(raw()) - {"format_version"}))
def test_every_key_is_needed(key: str) -> None:
    with pytest.raises(ArtifactError, match=f"lacks {key}"):
        Manifest.from_json(json.dumps({k: v for k, v in raw().items() if k != key}))


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{", "[" * 100_000, '{"format_version": 1, "format_version": 1}', '{"a": NaN}',
        '{"a": 1e999}', '{"a": ' + "9" * 10_000 + "}", " " * (MAX_MANIFEST_BYTES + 1),
    ],
    ids=range(10),
)  # fmt: skip
def test_malformed_text_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        Manifest.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_number_that_is_not_finite_is_refused_with_its_place() -> None:
    text = WHOLE.to_json().replace('"macs": 6', '"macs": NaN')
    with pytest.raises(ArtifactError, match=r"manifest\.json: macs must be finite, got nan"):
        Manifest.from_json(text)


def test_a_key_that_comes_twice_is_named() -> None:
    text = WHOLE.to_json().replace('"macs": 6', '"macs": 6, "macs": 7')
    with pytest.raises(ArtifactError, match="the key 'macs' is given twice"):
        Manifest.from_json(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}])
def test_a_value_without_a_json_form_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        manifest(files=FILES, settings={"a": value}).to_json()


def test_a_tensor_reads_as_its_type_and_shape() -> None:
    assert str(TensorSpec("x", "float32", ("batch", 3))) == "float32 (batch, 3)"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(path=st.sampled_from(paths(raw())), new=json_values)
def test_any_changed_value_gives_an_error_or_a_manifest_that_survives(
    path: tuple[Any, ...], new: object
) -> None:
    try:
        read = Manifest.from_json(json.dumps(replaced(raw(), path, new)))
    except ArtifactError:
        return
    assert Manifest.from_json(read.to_json()) == read


@settings(deadline=None)
@given(start=st.integers(0, len(WHOLE.to_json())), length=st.integers(0, 20), new=st.text(max_size=5))
def test_any_changed_text_gives_an_error_or_a_manifest_that_survives(
    start: int, length: int, new: str
) -> None:
    text = WHOLE.to_json()
    try:
        read = Manifest.from_json(text[:start] + new + text[start + length :])
    except ArtifactError:
        return
    assert Manifest.from_json(read.to_json()) == read


def test_the_documented_example_is_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("## manifest.json")[2]
    example = section.partition("```json\n")[2].partition("```")[0]
    assert set(json.loads(example)) == set(raw())
    Manifest.from_json(example)
