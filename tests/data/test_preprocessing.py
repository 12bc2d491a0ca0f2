import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.column_steps import JoinColumns, SelectColumns
from flyweight.data.image_steps import CenterCrop, DecodeImage, Resize, ToChannelsFirst
from flyweight.data.preprocessing import MAX_STEPS, Preprocessing
from flyweight.data.steps import Cast, Normalize, Rename, Rescale
from flyweight.data.text_steps import Tokenize
from flyweight.data.tokenizer import TOKENIZER_FILE, TokenizerFile
from flyweight.errors import ArtifactError, InputError

BYTE_LEVEL = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
BYTE_LEVEL |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
DEFINITION = TokenizerFile.from_json(
    json.dumps({"version": "1.0", "model": BYTE_LEVEL | {"vocab": {"a": 0}, "merges": []}})
)

EVERY_STEP = (
    DecodeImage("L"),
    Resize(8),
    Resize((8, 9), "bicubic"),
    CenterCrop(4, 5),
    ToChannelsFirst(),
    Rescale(1 / 255),
    Normalize((0.5,), (0.25,)),
    SelectColumns(("a", "b"), ("c",)),
    JoinColumns("x", 3),
    Tokenize(tokenizer=DEFINITION, max_length=12, padding="fixed", pad_id=3, token_type_ids=True, pair=True),
    Cast("int64", ("a",)),
    Rename("pixels"),
)


TAKES = {
    "images": Preprocessing((DecodeImage(), ToChannelsFirst())),
    "texts": Preprocessing((Tokenize(tokenizer=DEFINITION, max_length=12),)),
    "numbers": Preprocessing((Cast("float32", ("x",)),)),
}
GIVEN = {
    "images": {"image": [Path("a.png")]},
    "texts": {"text": ["hello"]},
    "numbers": {"age": np.ones(2), "rooms": np.ones(2)},
}


@pytest.mark.parametrize(("takes", "holds"), [(t, h) for t in TAKES for h in GIVEN if t != h])
def test_data_of_another_kind_are_one_sentence(takes, holds):
    message = f"the model takes {takes}, and input {next(iter(GIVEN[holds]))!r} holds {holds}"
    with pytest.raises(InputError, match=message):
        TAKES[takes](GIVEN[holds])


def test_arrays_for_a_model_of_texts_are_not_quoted():
    with pytest.raises(InputError, match=r"takes texts, and input 'x' holds numbers$"):
        TAKES["texts"]({"x": np.ones((2, 4, 4, 3))})


def test_a_column_that_is_not_selected_may_be_of_another_kind():
    columns = {"name": ["a"], "age": np.ones(1)}
    assert Preprocessing((SelectColumns(("age",)),))(columns)["x"].tolist() == [[1.0]]


def test_every_step_survives_json_and_files(tmp_path):
    preprocessing = Preprocessing(EVERY_STEP)
    assert preprocessing.write_files(tmp_path) == (TOKENIZER_FILE,)
    read = Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict())), tmp_path)
    assert read == preprocessing


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.floats(1e-6, 1e6))
def test_numbers_survive_json_exactly(mean, factor):
    preprocessing = Preprocessing((Rescale(factor), Normalize(tuple(mean), (factor,) * len(mean))))
    assert (
        Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict())), _nowhere()) == preprocessing
    )


def _nowhere():
    from pathlib import Path

    return Path("does-not-exist")


def test_without_steps_numbers_become_float32_and_int64_stays():
    inputs = {"a": np.ones((2, 3)), "b": np.ones(2, np.uint8), "c": np.arange(2), "d": [True, False]}
    out = Preprocessing()(inputs)
    assert [out[name].dtype for name in "abcd"] == [np.float32, np.float32, np.int64, np.float32]


def test_images_are_decoded_scaled_and_renamed(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).save(tmp_path / "white.png")
    steps = (DecodeImage(), Resize(4), CenterCrop(4, 4), ToChannelsFirst(), Rescale(1 / 255))
    out = Preprocessing(steps).renamed_to("pixels")({"image": [tmp_path / "white.png"]})
    assert out["pixels"].shape == (1, 3, 4, 4)
    np.testing.assert_allclose(out["pixels"], 1.0, rtol=1e-6)


def test_the_raw_inputs_are_left_as_they_were():
    raw = np.ones((2, 3), np.float32)
    Preprocessing((Rescale(2.0), Normalize((1.0,), (1.0,))))({"x": raw})
    assert raw.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_mapped_files_become_writable_arrays(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(3))
    out = Preprocessing()({"ids": np.load(tmp_path / "ids.npy", mmap_mode="r")})["ids"]
    assert out.flags.writeable
    assert type(out) is np.ndarray


@pytest.mark.parametrize("inputs", [{}, {"x": np.zeros((0, 3))}])
def test_no_example_is_an_error(inputs):
    with pytest.raises(InputError, match="no example"):
        Preprocessing()(inputs)


def test_two_tokenizers_are_refused():
    step = Tokenize(tokenizer=DEFINITION, max_length=4)
    with pytest.raises(ValueError, match="two tokenizers"):
        Preprocessing((step, step))


RESCALE = {"kind": "rescale", "factor": 1.0}
HOSTILE = [
    None,
    [],
    "text",
    {"version": 1},
    {"version": 2, "steps": []},
    {"version": True, "steps": []},
    {"version": 1, "steps": [], "more": 1},
    {"version": 1, "steps": {}},
    {"version": 1, "steps": [RESCALE] * (MAX_STEPS + 1)},
    *(
        {"version": 1, "steps": [step]}
        for step in (
            None,
            [],
            {},
            {"kind": "unknown"},
            {"kind": ["rescale"]},
            {"kind": "rescale"},
            RESCALE | {"more": 1},
            RESCALE | {"factor": "1"},
            RESCALE | {"factor": True},
            RESCALE | {"factor": None},
            RESCALE | {"factor": 0},
            RESCALE | {"factor": float("nan")},
            RESCALE | {"factor": float("inf")},
            RESCALE | {"factor": 10**400},
            {"kind": "decode_image", "mode": "CMYK"},
            {"kind": "decode_image", "mode": ["RGB"]},
            {"kind": "resize", "size": 10**9, "interpolation": "bilinear"},
            {"kind": "resize", "size": [8], "interpolation": "bilinear"},
            {"kind": "resize", "size": [8, 8, 8], "interpolation": "bilinear"},
            {"kind": "resize", "size": [8, "8"], "interpolation": "bilinear"},
            {"kind": "resize", "size": 8.0, "interpolation": "bilinear"},
            {"kind": "resize", "size": True, "interpolation": "bilinear"},
            {"kind": "resize", "size": 8, "interpolation": "open"},
            {"kind": "center_crop", "height": -1, "width": 1},
            {"kind": "normalize", "mean": [0.0], "std": [0.0]},
            {"kind": "normalize", "mean": 0.0, "std": 1.0},
            {"kind": "normalize", "mean": [], "std": []},
            {"kind": "normalize", "mean": [[0.0]], "std": [[1.0]]},
            {"kind": "select_columns", "columns": ["a", "a"], "integers": []},
            {"kind": "select_columns", "columns": ["a" * 5000], "integers": []},
            {"kind": "select_columns", "columns": [1], "integers": []},
            {"kind": "select_columns", "columns": ["a"] * 70_000, "integers": []},
            {"kind": "cast", "dtype": "object", "columns": []},
            {"kind": "rename", "name": ""},
            {"kind": "tokenize", "tokenizer": "../../secret"},
        )
    ),
]


@pytest.mark.parametrize("raw", HOSTILE, ids=lambda raw: repr(raw)[:60])
def test_a_hostile_manifest_is_an_artifact_error(raw, tmp_path):
    with pytest.raises(ArtifactError) as caught:
        Preprocessing.from_dict(raw, tmp_path)
    assert len(str(caught.value)) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(kind=st.sampled_from([step.kind for step in EVERY_STEP]), value=json_values, data=st.data())
def test_any_json_in_a_field_is_read_or_refused(kind, value, data):
    step = next(step for step in Preprocessing(EVERY_STEP).to_dict()["steps"] if step["kind"] == kind)
    field = data.draw(st.sampled_from(sorted(step)))
    raw = {"version": 1, "steps": [step | {field: value}]}
    try:
        Preprocessing.from_dict(raw, _nowhere())
    except ArtifactError:
        return


@pytest.mark.parametrize(
    "tokenizer", [{}, {"sha256": 1}, {"sha256": "0" * 64}, {"sha256": "x", "path": "/etc/passwd"}, None]
)
def test_a_tokenizer_of_another_digest_is_refused(tmp_path, tokenizer):
    preprocessing = Preprocessing((Tokenize(tokenizer=DEFINITION, max_length=4),))
    preprocessing.write_files(tmp_path)
    raw = preprocessing.to_dict()
    raw["steps"][0]["tokenizer"] = tokenizer
    with pytest.raises(ArtifactError, match=r"malformed|digest"):
        Preprocessing.from_dict(raw, tmp_path)
