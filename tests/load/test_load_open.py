"""From settings and data to a model that ran."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError
from flyweight.load.open import open_model
from flyweight.settings import Settings
from flyweight.tasks.classification import Classification
from flyweight.tasks.regression import Regression


def splits(**inputs: np.ndarray) -> Splits:
    given = inputs or {"pixels": np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)}
    part = Examples(given, np.array([0, 1, 0, 1, 0, 1]), ("0", "1"))
    return Splits(part, part, part)


def settings(**changes: object) -> Settings:
    return Settings(**({"model": "net", "data": "data", "out": "out"} | changes))


class Net(nn.Module):
    def __init__(self, width: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(image)


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a, b], dim=1)


class Squeezes(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image[:, :2].squeeze(0)


class GivesNan(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image[:, :2] * float("nan")


class Masks(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image[:, :2].masked_fill(image[:, :2] > 0, float("-inf"))


class Drops(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(image[:, :2], 0.5)


class Unnamed(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


def test_a_single_input_takes_the_name_of_the_parameter():
    opened = open_model(settings(), splits(), Classification(), module=Net())
    assert list(opened.model.example_inputs) == ["image"]
    assert opened.model.example_inputs["image"].shape == (1, 3)
    assert list(opened.model.preprocessing(splits().evaluation.inputs)) == ["image"]


def test_several_inputs_are_matched_by_name():
    inputs = {"b": np.zeros((6, 2), np.float32), "a": np.ones((6, 2), np.float32)}
    opened = open_model(settings(task="regression"), splits(**inputs), Regression(), module=Two())
    assert opened.model.outputs()[0][0].tolist() == [[1, 1], [0, 0]]


def test_the_module_that_was_given_stays_as_it_was():
    module = Net().train()
    open_model(settings(), splits(), Classification(), module=module)
    assert module.training


def test_declared_preprocessing_is_carried_out():
    opened = open_model(settings(preprocessing={"rescale": 2.0}), splits(), Classification(), module=Net())
    raw = splits().evaluation.inputs["pixels"][:1]
    assert torch.allclose(opened.model.example_inputs["image"], torch.from_numpy(raw * 2))


def test_a_masked_class_is_no_failure():
    open_model(settings(), splits(), Classification(), module=Masks())


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_channels_that_come_last_are_one_sentence_with_its_cure(dtype):
    images = np.zeros((6, 8, 8, 3), dtype)
    with pytest.raises(InputError) as raised:
        open_model(settings(), splits(image=images), Classification(), module=nn.Conv2d(3, 2, 3))
    assert str(raised.value) == (
        "model 'net' cannot run on input (1, 8, 8, 3): the channels seem to come last; "
        "give --preprocess channels_last=true"
    )


def test_two_texts_for_one_tokenizer_say_how_to_choose(tmp_path):
    words = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": words}))
    part = Examples({"text": ["a"] * 6, "text_b": ["a"] * 6}, np.array([0, 1] * 3), ("0", "1"))
    declared = settings(preprocessing={"tokenizer": str(tmp_path / "tokenizer.json")})
    with pytest.raises(InputError, match=r"--input-column, or encode .* --preprocess pair=true"):
        open_model(declared, Splits(part, part, part), Classification(), module=Net())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Net(width=4),
            r"cannot run on the data as inputs image \(1, 3\) float32: RuntimeError: mat1 and mat2",
        ),
        (Net(classes=1), "label 1 .* is out of range: the model has 1 output: .* --task regression"),
        (Squeezes(), r"gives shape \(2,\) for 1 example"),
        (Drops(), "model .* gives two answers to one input.*random numbers"),
        (GivesNan(), "gives NaN or infinity"),
        (Two(), r"forward\(\) of net takes a, b; the data give pixels"),
        (Unnamed(), "names no parameter"),
        (nn.Sequential(nn.Linear(3, 2), nn.Unflatten(1, (2, 1))), r"classification needs \(batch, classes\)"),
    ],
    ids=["shape", "classes", "squeezed", "random", "nan", "names", "unnamed", "axes"],
)
def test_what_does_not_fit_is_one_sentence(module, message):
    with pytest.raises(InputError, match=message) as raised:
        open_model(settings(), splits(), Classification(), module=module)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no/such/folder", "does not exist; name file.py:factory"),
        (__file__, "names no function; write"),
    ],
)
def test_what_is_no_model_is_told(spec, message):
    with pytest.raises(InputError, match=message):
        open_model(settings(model=spec), splits(), Classification())
