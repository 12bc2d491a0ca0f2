import json
from pathlib import Path

import numpy as np
import pytest

from flyweight.data.column_steps import SelectColumns
from flyweight.data.declared import IMAGENET_MEAN, kind_of
from flyweight.data.examples import Examples, Splits
from flyweight.data.image_steps import CenterCrop, DecodeImage, Resize, ToChannelsFirst
from flyweight.data.preprocessing import build
from flyweight.data.steps import Cast, Normalize, Rescale
from flyweight.errors import InputError


def splits_of(**inputs) -> Splits:
    examples = Examples(inputs)
    return Splits(examples, examples, examples)


IMAGES = splits_of(image=[Path("a.png"), Path("b.png")])
TABLE = splits_of(age=np.array([1.0, 3.0], np.float32), rooms=np.array([2, 2]))
PIXELS = splits_of(x=np.zeros((2, 4, 4, 3), np.uint8))
TEXTS = splits_of(text=["a", "b"])


def test_kinds_are_told_by_the_values():
    assert [kind_of(s.train) for s in (IMAGES, TABLE, PIXELS, TEXTS)] == [
        "images",
        "table",
        "arrays",
        "texts",
    ]


def test_images_are_decoded_resized_cropped_and_scaled_in_this_order():
    steps = build({"mean": "imagenet", "std": "imagenet", "crop": 8, "resize": 9}, IMAGES).steps
    assert steps == (
        *(DecodeImage(), Resize(9), CenterCrop(8, 8), ToChannelsFirst(), Rescale(1 / 255)),
        *(Normalize(IMAGENET_MEAN, (0.229, 0.224, 0.225)), Cast()),
    )


def test_an_explicit_rescale_replaces_that_of_imagenet():
    assert Rescale(0.5) in build({"mean": "imagenet", "rescale": 0.5}, IMAGES).steps


def test_one_mean_serves_several_deviations():
    assert Normalize((0.5, 0.5), (1.0, 2.0)) in build({"mean": 0.5, "std": [1, 2]}, IMAGES).steps


def test_tables_become_one_matrix_of_all_columns():
    assert build({}, TABLE).steps == (SelectColumns(("age", "rooms")),)


def test_integer_columns_stay_apart():
    out = build({"integers": ["rooms"]}, TABLE)(TABLE.train.inputs)
    assert out["x"].shape == (2, 1)
    assert out["rooms"].dtype == np.int64


def test_standardize_uses_the_training_split_only_and_keeps_constants():
    other = Examples({"age": np.array([100.0], np.float32), "rooms": np.array([7])})
    preprocessing = build({"standardize": True}, Splits(TABLE.train, other, other))
    assert preprocessing(TABLE.train.inputs)["x"].tolist() == [[-1, 0], [1, 0]]


def test_channels_last_arrays_are_turned_and_take_files_too():
    steps = build({"channels_last": True, "rescale": 0.5}, PIXELS).steps
    assert steps == (DecodeImage("RGB"), ToChannelsFirst(), Rescale(0.5), Cast("float32", ("x",)))


def test_raw_arrays_become_float32_and_integers_stay_if_told():
    data = splits_of(x=np.arange(6).reshape(2, 3))
    assert build({}, data)(data.train.inputs)["x"].dtype == np.float32
    assert build({"integers": True}, data)(data.train.inputs)["x"].dtype == np.int64
    assert build({"integers": ["x"]}, data)(data.train.inputs)["x"].dtype == np.int64


def test_a_tokenizer_brings_its_own_length_and_padding(tmp_path):
    model = {"type": "WordLevel", "vocab": {"a": 0, "<pad>": 1}, "unk_token": "a"}
    pad = {"id": 1, "content": "<pad>", "single_word": False, "lstrip": False, "rstrip": False}
    raw = {"version": "1.0", "added_tokens": [pad | {"normalized": False, "special": True}], "model": model}
    raw["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    (step,) = build({"tokenizer": str(path)}, TEXTS).steps
    assert (step.max_length, step.pad_id) == (5, 1)
    (step,) = build({"tokenizer": str(path), "max_length": 9, "padding": "fixed"}, TEXTS).steps
    assert (step.max_length, step.padding) == (9, "fixed")


@pytest.mark.parametrize(
    ("settings", "splits", "message"),
    [
        ({"resise": 8}, IMAGES, "'resise' is unknown; known for images: mode, resize"),
        ({"resize": 8}, TABLE, "'resize' is for images and arrays, and the data are table"),
        ({"resize": "big"}, IMAGES, "'resize' must be a whole number of pixels"),
        ({"resize": True}, IMAGES, "'resize' must be"),
        ({"resize": 0}, IMAGES, "resize must be in 1.."),
        ({"crop": [1, 2, 3]}, IMAGES, "'crop' must be"),
        ({"rescale": [1, 2]}, IMAGES, "'rescale' must be a number"),
        ({"mean": "cifar"}, IMAGES, "'mean' must be"),
        ({"mean": [1, 2], "std": [1, 2, 3]}, IMAGES, "same number of values"),
        ({"std": 0}, IMAGES, "above 0"),
        ({"mode": ["RGB"]}, IMAGES, "'mode' must be one of RGB, L"),
        ({"columns": "age"}, TABLE, "'columns' must be a list of names"),
        ({"columns": ["agee"], "standardize": True}, TABLE, "needs a column 'agee'"),
        ({"integers": ["rooms"], "standardize": True}, TABLE, "cannot be scaled here"),
        ({"standardize": 1}, TABLE, "true or false"),
        ({"resize": 8}, PIXELS, "resize and crop need"),
        ({"integers": ["y"]}, PIXELS, "integers names 'y'"),
        ({}, TEXTS, "give the path of the model's tokenizer.json"),
        ({"tokenizer": "missing.json"}, TEXTS, "cannot read the tokenizer"),
    ],
)
def test_wrong_settings_are_one_clear_sentence(settings, splits, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        build(settings, splits)
