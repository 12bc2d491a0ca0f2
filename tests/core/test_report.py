from pathlib import Path

from flyweight.core.report import Artifact, Comparison, Estimate, PairedTest, Slice


def comparison(*slices: Slice) -> Comparison:
    return Comparison(
        size_ratio=4.0,
        speedup=Estimate(value=2.0, low=1.9, high=2.1),
        quality_drop=Estimate(value=0.0, low=0.0, high=0.0),
        test=PairedTest(name="McNemar (exact)", p_value=1.0, lost=0, gained=0),
        agreement=1.0,
        slices=slices,
        examples=10,
    )


def test_an_artifact_weighs_all_its_files() -> None:
    artifact = Artifact(
        path=Path("out"),
        format="onnx",
        model_file="model.onnx",
        files={"model.onnx": 100, "tokenizer.json": 20},
        sha256="0" * 64,
    )
    assert artifact.nbytes == 120
    assert artifact.model_path == Path("out/model.onnx")


def test_a_drop_is_positive_where_the_compressed_model_is_worse() -> None:
    assert Slice(name="cat", examples=5, original=1.0, compressed=0.75).drop == 0.25


def test_the_worst_slice_lost_most() -> None:
    better = Slice(name="cat", examples=5, original=0.5, compressed=0.75)
    worse = Slice(name="dog", examples=5, original=0.5, compressed=0.25)
    assert comparison(better, worse).worst_slice == worse
    assert comparison().worst_slice is None
