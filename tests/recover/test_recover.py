"""Recovery on small networks: it helps, keeps promises, touches no evaluation data, survives a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from flyweight.core.plan import Plan
from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError, UnsupportedError
from flyweight.model import Model
from flyweight.recover.recover import Recovered, Teaching, recover
from flyweight.recover.settings import TrainingSettings
from flyweight.tasks.classification import Classification
from flyweight.tasks.custom import Custom
from flyweight.tasks.regression import Regression
from flyweight.tasks.similarity import Similarity
from flyweight.tensors.encoded import encoded_layers
from tests.recover.networks import calibration, compressed, convolutional, perceptron, plan_for, splits

SETTINGS = TrainingSettings(epochs=4, train_batch_size=32, precision="float32", held_out=0.25)


def teaching(model: Model, settings: TrainingSettings = SETTINGS, **changes: object) -> Teaching:
    made = Teaching(
        task=Classification(), splits=splits(model), batches=calibration(model), settings=settings
    )
    return replace(made, **changes)


def recovered(
    model: Model, technique: str, values: dict[str, object], settings: TrainingSettings = SETTINGS
) -> tuple[Model, Plan, Recovered]:
    plan = plan_for(model, technique, values)
    small = compressed(model, plan)
    return small, plan, recover(model, small, plan, teaching(model, settings))


def error(one: Model, other: Model) -> float:
    """Of the outputs on evaluation examples, relative."""
    ((name, x),) = splits(one).evaluation.inputs.items()
    first, second = (m.outputs({name: torch.from_numpy(x)})[0] for m in (one, other))
    return float((first - second).norm() / first.norm())


@pytest.mark.parametrize("norms", ["kept", "folded"])
def test_what_rounding_cost_comes_back(norms: str):
    model = convolutional()
    settings = replace(SETTINGS, epochs=12, batch_norms=norms)
    small, _, result = recovered(model, "weight_only", {"bits": 2}, settings)
    assert result.trained.after.loss < 0.5 * result.trained.before.loss
    assert error(model, result.model) < 0.7 * error(model, small)


def test_tuning_scales_helps_too():
    model = perceptron()
    settings = replace(SETTINGS, epochs=12, tune="scales", learning_rate=0.01)
    small, _, result = recovered(model, "weight_only", {"bits": 3, "symmetric": False}, settings)
    assert error(model, result.model) < 0.9 * error(model, small)


def test_both_models_are_left_as_they_were():
    model = convolutional()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    small, plan, _ = recovered(model, "weight_only", {"bits": 3})
    again = compressed(model, plan)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert error(small, again) < 1e-6


def test_the_report_is_told_what_was_done():
    _, _, result = recovered(perceptron(), "weight_only", {"bits": 3})
    (told,) = result.sentences("top-1 accuracy")
    assert told.startswith("trained for 4 epochs on 192 examples in ")
    assert "(weights, biases and norms, scales; float32): on training examples held out, loss " in told
    assert ", top-1 accuracy " in told


def test_examples_that_quality_is_measured_on_are_left_out():
    model = perceptron()
    own = splits(model)
    mixed = replace_train(
        own, np.concatenate([own.train.inputs["input"], own.evaluation.inputs["input"][:9]])
    )
    plan = plan_for(model, "weight_only", {"bits": 3})
    result = recover(model, compressed(model, plan), plan, teaching(model, splits=mixed))
    assert result.left_out == 9
    assert "9 training examples that are evaluation examples too were left out" in result.sentences("x")


def replace_train(own: Splits, x: np.ndarray) -> Splits:
    labels = np.concatenate([own.train.targets, own.evaluation.targets[: len(x) - len(own.train)]])
    return replace(own, train=replace(own.train, inputs={"input": x}, targets=labels))


def test_evaluation_data_alone_are_refused():
    model, plan = perceptron(), plan_for(perceptron(), "weight_only", {"bits": 3})
    own = splits(model).evaluation
    same = Splits(own, own, own)
    copied = Splits(own.take(np.arange(len(own))), own, own)
    for data, message in ((same, "no training examples but those"), (copied, "every training example")):
        with pytest.raises(InputError, match=message):
            recover(model, compressed(model, plan), plan, teaching(model, splits=data))


def test_a_model_without_parameters_is_refused():
    model = Model("sum", torch.nn.Flatten(), {"input": torch.randn(1, 16)}, preprocessing=None)
    with pytest.raises(UnsupportedError, match="has no parameters to train"):
        recover(model, model, Plan("sum"), teaching(perceptron()))


@pytest.mark.parametrize("task", [Regression(), Similarity("neighbours")])
def test_other_tasks_are_recovered(task):
    model = perceptron()
    own = splits(model)
    if isinstance(task, Regression):
        own = Splits(*(with_values(model, part) for part in (own.train, own.calibration, own.evaluation)))
    plan = plan_for(model, "weight_only", {"bits": 2, "symmetric": False})
    small = compressed(model, plan)
    settings = replace(SETTINGS, learning_rate=0.01)
    result = recover(model, small, plan, teaching(model, settings, task=task, splits=own))
    assert result.trained.after.better_than(result.trained.before)


def with_values(model: Model, examples: Examples) -> Examples:
    """Labelled with what the model puts out."""
    with torch.no_grad():
        values = model.module(torch.from_numpy(examples.inputs["input"])).double().numpy()
    return replace(examples, targets=values, classes=())


def test_a_metric_of_ones_own_chooses_the_state(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "def right(outputs, targets):\n    return outputs.argmax(1) == targets\n"
    )
    model = perceptron()
    plan = plan_for(model, "weight_only", {"bits": 2, "symmetric": False})
    own = teaching(model, task=Custom(f"{tmp_path / 'own.py'}:right"))
    result = recover(model, compressed(model, plan), plan, own)
    assert result.trained.after.metric >= result.trained.before.metric


def test_bfloat16_learns_as_well():
    model = convolutional()
    settings = replace(SETTINGS, epochs=12, precision="bfloat16")
    small, _, result = recovered(model, "weight_only", {"bits": 2}, settings)
    assert error(model, result.model) < 0.7 * error(model, small)


KILLED = """
import sys
from pathlib import Path
import torch
from tests.recover.test_recover import low_bits

torch.set_num_threads(1)
low_bits(Path(sys.argv[1]))
"""


def low_bits(state: Path) -> dict[str, torch.Tensor]:
    """What a training of 2-bit weights and 4-bit activations comes to, its state written after each step."""
    model = convolutional()
    plan = plan_for(model, "weight_only", {"bits": 2}, 4)
    settings = replace(
        SETTINGS, epochs=10, augment={"crop": 1, "flip": True}, precision="bfloat16", resume=True
    )
    own = teaching(model, settings, storage=state, state_every_s=0.0)
    result = recover(model, compressed(model, plan), plan, own)
    codes = {f"{n}/codes": layer.encoding().codes for n, layer in encoded_layers(result.model.module)}
    return result.model.module.state_dict() | codes


def test_a_killed_training_ends_as_if_nothing_had_happened(tmp_path: Path):
    state = tmp_path / "killed.safetensors"
    process = subprocess.Popen([sys.executable, "-c", KILLED, state])
    try:
        wait_for(state)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    begun = read_step(state)
    resumed, whole = low_bits(state), low_bits(tmp_path / "whole.safetensors")
    assert 0 < begun < read_step(state)
    assert set(whole) == set(resumed)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def read_step(state: Path) -> int:
    with safe_open(state, framework="pt") as file:
        return json.loads(file.metadata()["flyweight_training"])["point"]["step"]


def wait_for(path: Path) -> None:
    """Until the file is there: the training has begun, and is not at its end."""
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"no {path.name} after a minute")


def test_frozen_layers_hold_what_was_trained():
    _, _, result = recovered(perceptron(), "weight_only", {"bits": 4})
    assert all(layer.frozen is not None for _, layer in encoded_layers(result.model.module))
