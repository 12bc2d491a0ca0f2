"""The loop: it learns, it is the same every time, it goes on after an interrupt, and it stops when told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flyweight.errors import InputError, UnsupportedError
from flyweight.recover.batches import Batch
from flyweight.recover.optimizer import ParameterGroup, default_learning_rate, rate_factor
from flyweight.recover.settings import TrainingSettings
from flyweight.recover.train import Storage, Trained, Training, Validation, train

SETTINGS = TrainingSettings(epochs=4, optimizer="sgd", learning_rate=0.1)


class Lines:
    """Six batches an epoch of points on a line."""

    def __len__(self) -> int:
        return 6

    def at(self, epoch: int, index: int) -> Batch:
        generator = torch.Generator().manual_seed(100 * epoch + index)
        x = torch.randn(8, 3, generator=generator)
        return Batch({"x": x}, (x @ torch.tensor([1.0, -2.0, 0.5]) > 0).long())


class Interrupted(Exception):
    pass


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)
        ).eval()


def training(
    module: nn.Module,
    settings: TrainingSettings = SETTINGS,
    *,
    after_step: Callable[[float], None] = lambda done: None,
    metrics: list[float] | None = None,
) -> Training:
    """Of a classifier; ``metrics`` are what it is said to do on examples held out, in turn."""
    left = list(metrics or ())

    def loss(batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(module(batch.inputs["x"]), batch.labels)

    @torch.no_grad()
    def validate() -> Validation:
        batch = Lines().at(99, 0)
        found = module(batch.inputs["x"])
        accuracy = float((found.argmax(1) == batch.labels).float().mean())
        own = nn.functional.cross_entropy(found, batch.labels)
        return Validation(float(own), left.pop(0) if left else accuracy)

    return Training(
        module=module,
        groups=[ParameterGroup(what="weights", parameters=list(module.parameters()), decays=True)],
        batches=Lines(),
        loss=loss,
        validate=validate,
        settings=settings,
        after_step=after_step,
    )


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and set(one) == set(other)


def interrupted_at(step: int) -> Callable[[float], None]:
    """What raises after so many steps."""
    left = [step]

    def count(done: float) -> None:
        left[0] -= 1
        if not left[0]:
            raise Interrupted

    return count


def trained(settings: TrainingSettings = SETTINGS) -> tuple[dict[str, Tensor], Trained]:
    module = network()
    result = train(training(module, settings))
    return values(module), result


def test_it_learns():
    _, result = trained()
    assert result.after.loss < 0.6 * result.before.loss
    assert (result.epochs, result.steps) == (4.0, 24)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_training_gives_the_same_values(optimizer: str):
    settings = replace(SETTINGS, optimizer=optimizer)
    assert same(trained(settings)[0], trained(settings)[0])


def test_torchs_own_random_numbers_are_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    trained()
    assert torch.equal(torch.rand(1), expected)


def test_dropout_draws_by_the_seed():
    def result(seed: int) -> dict[str, Tensor]:
        module = network()
        module[3].train()
        train(replace(training(module, metrics=[0.1, 0.2, 0.3, 0.4, 0.5]), seed=seed))
        return values(module)

    assert same(result(0), result(0))
    assert not same(result(0), result(1))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [1, 5, 6, 13])
def test_an_interrupted_training_ends_as_if_nothing_had_happened(tmp_path: Path, optimizer: str, step: int):
    settings = replace(SETTINGS, optimizer=optimizer, resume=True)
    storage = Storage(tmp_path / "state.safetensors", "run", every_s=0.0)
    with pytest.raises(Interrupted):
        train(training(network(), settings, after_step=interrupted_at(step + 1)), storage=storage)
    module = network()
    result = train(training(module, settings), storage=storage)
    wanted, whole = trained(settings)
    assert same(values(module), wanted)
    assert replace(result, seconds=0.0) == replace(whole, seconds=0.0)


def test_a_training_that_ended_is_not_trained_further(tmp_path: Path):
    settings = replace(SETTINGS, resume=True)
    storage = Storage(tmp_path / "state.safetensors", "run")
    first = network()
    ended = train(training(first, settings), storage=storage)
    module = network()
    again = train(training(module, settings, after_step=interrupted_at(1)), storage=storage)
    assert same(values(module), values(first))
    assert again == ended


def test_without_resume_it_begins_anew(tmp_path: Path):
    storage = Storage(tmp_path / "state.safetensors", "run", every_s=0.0)
    with pytest.raises(Interrupted):
        train(training(network(), after_step=interrupted_at(9)), storage=storage)
    steps: list[float] = []
    train(training(network(), after_step=steps.append), storage=storage)
    assert len(steps) == 24


def test_the_state_of_another_training_is_refused(tmp_path: Path):
    settings = replace(SETTINGS, resume=True)
    train(training(network(), settings), storage=Storage(tmp_path / "state.safetensors", "one"))
    with pytest.raises(InputError, match="other settings, data or another model"):
        train(training(network(), settings), storage=Storage(tmp_path / "state.safetensors", "other"))


def test_the_best_state_is_kept():
    module, epochs = network(), []
    metrics = [0.1, 0.5, 0.9, 0.3, 0.2]
    result = train(
        training(
            module,
            metrics=metrics,
            after_step=lambda done: epochs.append(values(module)),
        )
    )
    assert (result.best_epoch, result.after.metric, result.before.metric) == (2, 0.9, 0.1)
    assert same(values(module), epochs[11])


def test_training_that_helps_nothing_leaves_what_there_was():
    module = network()
    before = values(module)
    result = train(training(module, metrics=[0.9, 0.5, 0.5, 0.5, 0.5]))
    assert result.best_epoch == 0
    kept = {n: v for n, v in before.items() if "num_batches" not in n}
    assert same({n: v for n, v in values(module).items() if n in kept}, kept)


def test_a_better_metric_with_a_larger_loss_than_before_is_not_kept():
    module = network()
    settings = replace(SETTINGS, learning_rate=100.0, epochs=1, clip_norm=1e6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = train(training(module, settings, metrics=[0.5, 0.9]))
    assert result.best_epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_of_equal_metrics_the_smaller_loss_decides():
    assert Validation(0.1, 0.5).better_than(Validation(0.2, 0.5))
    assert not Validation(0.2, 0.5).better_than(Validation(0.1, 0.5))
    assert Validation(0.9, 0.6).better_than(Validation(0.1, 0.5))
    assert Validation(0.1).better_than(Validation(0.2))


def test_patience_ends_it():
    result = train(training(network(), replace(SETTINGS, patience=2), metrics=[0.5, 0.9, 0.4, 0.4, 1.0]))
    assert (result.epochs, result.best_epoch) == (3.0, 1)


def test_time_ends_it():
    settings = replace(SETTINGS, epochs=10**6, train_seconds=0.5)
    result = train(training(network(), settings))
    assert 0.4 < result.seconds < 10
    assert 0 < result.steps < 6 * 10**6


def test_a_loss_that_is_not_finite_is_told():
    made = training(network())
    with pytest.raises(UnsupportedError, match="the loss is nan at step 1 of 24; a lower --learning-rate"):
        train(replace(made, loss=lambda batch: torch.tensor(float("nan"), requires_grad=True)))


def test_progress_shows_loss_and_metric():
    shown: list[str] = []

    class Shown:
        def track(self, items, label):
            for item in items:
                yield item
                shown.append(label())

        def stage(self, label):
            raise NotImplementedError

    train(training(network()), progress=Shown())
    assert shown[0].startswith("Training, epoch 1 of 4, loss 0.")
    assert ", held out 0." in shown[-1]


def test_scales_alone_learn_faster_than_weights():
    assert default_learning_rate("adamw", "scales") > default_learning_rate("adamw", "all")


def test_the_learning_rate_rises_and_falls():
    assert rate_factor(0.05, 0.1) == pytest.approx(0.5)
    assert rate_factor(0.1, 0.1) == pytest.approx(1.0)
    assert rate_factor(0.55, 0.1) == pytest.approx(0.5)
    assert rate_factor(1.0, 0.1) == pytest.approx(0.0)
    assert rate_factor(0.0, 0.0) == pytest.approx(1.0)


def test_long_gradients_are_shortened():
    module = nn.Linear(3, 2, bias=False)
    before = module.weight.detach().clone()
    settings = replace(SETTINGS, epochs=1, warm_up=0.0, weight_decay=0.0, clip_norm=1e-3)
    steps: list[Tensor] = []
    made = replace(
        training(module, settings, after_step=lambda done: steps.append(module.weight.detach().clone())),
        loss=lambda batch: 1e6 * module(batch.inputs["x"]).square().mean(),
    )
    train(made)
    # Nesterov's first step is (1 + momentum) times the learning rate times the gradient
    assert float((steps[0] - before).norm()) == pytest.approx(0.1 * 1.9e-3, rel=0.02)
