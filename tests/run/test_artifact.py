from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from small_artifacts import linear, manifest, write_artifact

import flyweight
from flyweight.errors import ArtifactError, InputError
from flyweight.run.artifact import describe_files, open_artifact, read_manifest, write_manifest
from flyweight.run.manifest import MAX_MANIFEST_BYTES, FileEntry


def test_open_artifact_counts_every_file_the_device_needs(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    write_artifact(folder, file_names=("model.onnx", "tokenizer.json"))
    (folder / "report.html").write_text("not on the device")
    artifact = flyweight.open_artifact(str(folder))
    sizes = {
        name: (folder / name).stat().st_size for name in ("model.onnx", "tokenizer.json", "manifest.json")
    }
    assert artifact.files == sizes
    assert artifact.nbytes == sum(sizes.values())
    assert artifact.sha256 == hashlib.sha256(linear()).hexdigest()
    assert artifact.model_path == folder / "model.onnx"


def test_read_manifest_gives_what_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest(files={"model.onnx": FileEntry(1, "0" * 64)}))
    assert read_manifest(tmp_path) == manifest(files={"model.onnx": FileEntry(1, "0" * 64)})


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        open_artifact(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json"):
        open_artifact(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b" " * (MAX_MANIFEST_BYTES + 1)], ids=["empty", "binary", "huge"]
)
def test_a_damaged_manifest_is_named_with_its_folder(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{tmp_path.name} cannot be used: .*manifest\.json"):
        open_artifact(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write_artifact(tmp_path) / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx is missing"):
        open_artifact(tmp_path, verify=False)


def test_a_folder_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_artifact(tmp_path / "out") / "model.onnx").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"^out is damaged: model\.onnx is missing"):
        open_artifact("out")


def test_a_file_of_another_size_is_refused_without_a_digest(tmp_path: Path) -> None:
    with (write_artifact(tmp_path) / "model.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file"):
        open_artifact(tmp_path, verify=False)


def test_one_changed_bit_is_found_by_the_digest_alone(tmp_path: Path) -> None:
    data = bytearray(linear())
    data[-1] ^= 1
    (write_artifact(tmp_path) / "model.onnx").write_bytes(data)
    open_artifact(tmp_path, verify=False)
    with pytest.raises(ArtifactError, match=r"model\.onnx is not the file"):
        open_artifact(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "out")
    (folder / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to("../elsewhere.onnx")
    with pytest.raises(ArtifactError, match="lies outside"):
        open_artifact(folder)
    with pytest.raises(ArtifactError, match="lies outside"):
        describe_files(folder, ["model.onnx"])


def test_weights_in_a_file_that_is_not_listed_are_refused(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path, linear() + b"location weights.bin")
    assert open_artifact(folder).path == folder  # nothing there that it could read
    (folder / "weights.bin").write_bytes(b"1234")
    with pytest.raises(ArtifactError, match=r"weights from weights\.bin, which the manifest does not"):
        open_artifact(folder)
