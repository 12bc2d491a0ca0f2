"""Settings: their limits, and their way to flyweight.yaml and back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from flyweight.core.cost import Budget
from flyweight.errors import InputError
from flyweight.settings import DEFAULT_QUALITY_DROP, DataSettings, Settings
from flyweight.settings_file import read_settings_file, settings_from

NEEDED = {"model": "net.py:net", "data": "digits.npz", "out": "small"}


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "flyweight.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_values_are_read_back_as_they_were():
    settings = Settings(
        **NEEDED,
        task_settings={"top_k": 5},
        classes=("b", "a"),
        model_arguments={"n": 9},
        preprocessing={"mean": [0.5, 0.5], "resize": 32},
        techniques=("static_int8",),
        technique_settings={"bits": 8},
        budget=Budget(storage_bytes=25e6, quality_drop=None),
        data_settings=DataSettings(inputs=("a", "b"), target="y", seed=3),
        threads=2,
        overwrite=True,
    )
    assert settings_from(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("max_size", 25, "25MB or 25B"),
        ("max_ram", 80, "80MB or 80B"),
        ("max_latency", 0.015, "0.015ms or 0.015s"),
        ("max_energy", 5, "5mJ or 5J"),
    ],
)
def test_a_bound_without_a_unit_is_refused(tmp_path, key, value, advice):
    with pytest.raises(InputError, match=f"has no unit; give one: {advice}"):
        read_settings_file(file(tmp_path, f"{key}: {value}"))


def test_every_bound_is_read_back_exactly():
    budget = Budget(
        storage_bytes=1e7 / 3, latency_s=1 / 3, quality_drop=0.1, ram_bytes=1e9, energy_j=1e-7 / 3
    )
    settings = Settings(**NEEDED, budget=budget)
    assert settings_from(json.loads(json.dumps(settings.to_dict()))).budget == budget


def test_classes_in_a_file_may_be_numbers(tmp_path):
    assert read_settings_file(file(tmp_path, "classes: [2, 1, ten]")) == {"classes": ("2", "1", "ten")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ["a", "b", "a"]}, "names 'a' twice"),
        ({"classes": ["a", "b"], "task": "regression"}, "numbers"),
    ],
)
def test_classes_that_cannot_be_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        settings_from({**NEEDED, **values})


@pytest.mark.parametrize("task", ["classification", "similarity"])
@pytest.mark.parametrize(("drop", "advice"), [(1, "write 1% or 0.01"), ("200%", "write 2% or 0.02")])
def test_a_drop_that_allows_anything_is_refused(task, drop, advice):
    with pytest.raises(InputError, match=f"at most 1; {advice}"):
        settings_from({**NEEDED, "task": task, "max_drop": drop})


@pytest.mark.parametrize("task", ["regression", "metric.py:score"])
def test_a_drop_of_other_metrics_is_in_their_own_unit(task):
    assert settings_from({**NEEDED, "task": task, "max_drop": 3}).budget.quality_drop == 3


def test_a_file_reads_units_and_lists(tmp_path):
    path = file(tmp_path, "max_size: 25MB\nmax_drop: 0.5%\ntechniques: static_int8\ninputs: [a, b]\nplan:\n")
    assert read_settings_file(path) == {
        "max_size": 25e6,
        "max_drop": 0.005,
        "techniques": ("static_int8",),
        "inputs": ("a", "b"),
    }


def test_a_factor_may_be_a_fraction(tmp_path):
    path = file(tmp_path, "preprocessing: {rescale: 1/255}")
    assert read_settings_file(path) == {"preprocessing": {"rescale": 1 / 255}}


def test_values_reach_the_budget_and_the_data_settings():
    settings = settings_from({**NEEDED, "max_latency": "15ms", "seed": 7})
    assert settings.budget == Budget(latency_s=0.015, quality_drop=DEFAULT_QUALITY_DROP)
    assert settings.data_settings.seed == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_sise: 25MB", "max_sise: unknown key 'max_sise'; did you mean 'max_size'"),
        ("max_size: abc", "max_size: 'abc' is not a size"),
        ("threads: two", "threads: must be a whole number, got 'two'"),
        ("threads: true", "threads: must be a whole number"),
        ("techniques: {a: 1}", "techniques: must be a list"),
        ("model_arguments: [1]", "model_arguments: must hold"),
        ("model_arguments: {n: [1]}", "n must be true, false, a number or text"),
        ("classes: [yes, maybe]", "YAML reads one of them as True: put it in quotes"),
        ("classes: cat", "classes: must be a list of two names or more"),
        ("overwrite: maybe", "must be true or false"),
        ("- a\n- b", "holds a list"),
        ("a: [", "is not YAML"),
        ("model: !!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(tmp_path, text, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as raised:
        read_settings_file(file(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"flyweight\.yaml cannot be read: No such file"):
        read_settings_file(tmp_path / "flyweight.yaml")


def test_an_empty_file_says_nothing(tmp_path):
    assert read_settings_file(file(tmp_path, "# nothing yet\n")) == {}


@pytest.mark.parametrize("key", NEEDED)
def test_what_is_missing_is_named(key):
    with pytest.raises(InputError, match=f"no {key} is given"):
        settings_from({k: v for k, v in NEEDED.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", -1),
        ("batch_size", 0),
        ("seconds", 0.0),
        ("seconds", math.inf),
        ("seed", -1),
        ("calibration_size", 0),
    ],
)
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(InputError, match=key):
        settings_from({**NEEDED, key: value})
