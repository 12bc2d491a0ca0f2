import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.techniques.learned_rounding import (
    HELD_BACK,
    STARTED_FROM,
    LearnedRounding,
    _enough_parts,
    _first,
)
from flyweight.tensors.encoded import encoded_layers


class Residual(nn.Module):
    """Two residual blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.up2, self.down2 = nn.Linear(16, 32, bias=False), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, input):
        x = input + self.down(torch.relu(self.up(input)))
        x = x + self.down2(torch.relu(self.up2(x)))
        return self.head(x)


def residual() -> Model:
    torch.manual_seed(0)
    return Model("residual", Residual(), {"input": torch.zeros(1, 16)})


def batches(seed: int, count: int = 16) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(99))
    return [{"input": torch.randn(32, 16, generator=generator) @ mixing} for _ in range(count)]


def after(model: Model, technique: str, **settings) -> Model:
    names = tuple(layer.name for layer in profile(model).layers)
    return apply(model, Plan(model.name, (Decision(technique, names, Stage.QUANTIZE, settings),)), batches(1))


def error(model: Model, result: Model) -> float:
    inputs = {"input": torch.cat([b["input"] for b in batches(2)])}
    wanted, got = model.outputs(inputs)[0], result.outputs(inputs)[0]
    return float((wanted - got).square().sum() / wanted.square().sum())


def test_learning_brings_outputs_closer_than_compensation():
    model = residual()
    start = after(model, "gptq", bits=2)
    learned = after(model, "learned_rounding", bits=2, steps=200)
    assert error(model, learned) < 0.7 * error(model, start)


def test_blocks_come_closer_to_their_own_outputs():
    model = residual()
    start = after(model, "gptq", bits=3, rounds=0)
    learned = after(model, "learned_rounding", bits=3, rounds=0, steps=0, block_steps=200, input_drop=0.0)
    assert error(model, learned) < error(model, start)


def test_probabilities_come_closer_where_outputs_are_logits():
    model = residual()
    wanted, start, learned = (
        result.outputs(batches(2)[0])[0].log_softmax(1)
        for result in (
            model,
            after(model, "gptq", bits=2),
            after(model, "learned_rounding", bits=2, steps=200, outputs="logits"),
        )
    )
    divergence = [(wanted.exp() * (wanted - one)).sum(1).mean() for one in (start, learned)]
    assert divergence[1] < 0.7 * divergence[0]


def test_examples_are_taken_in_parts_of_the_size_that_is_asked_for():
    model = residual()
    one, other = (after(model, "learned_rounding", bits=2, steps=20, batch_size=size) for size in (32, 4))
    assert not torch.equal(one.outputs(batches(2)[0])[0], other.outputs(batches(2)[0])[0])


def test_what_learned_nothing_keeps_its_start():
    model = residual()
    start = after(model, "gptq", bits=4)
    kept = after(model, "learned_rounding", bits=4, steps=1, block_steps=1, code_rate=0.0, scale_rate=0.0)
    inputs = batches(2)[0]
    assert torch.equal(start.outputs(inputs)[0], kept.outputs(inputs)[0])


def test_the_seed_decides():
    model = residual()
    inputs = batches(2)[0]
    one, same, other = (
        after(model, "learned_rounding", bits=2, steps=30, seed=seed).outputs(inputs)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("steps", -1, "steps must be at least 0"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("outputs", "words", "outputs must be one of values, logits"),
        ("code_rate", 1.0, "code_rate must be"),
        ("input_drop", 1.5, "input_drop must be"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: float | str, message: str):
    decision = Decision("learned_rounding", ("head",), Stage.QUANTIZE, {setting: value})
    with pytest.raises(ValueError, match=message):
        LearnedRounding().predict(profile(residual()), decision)


def test_few_examples_are_parted_so_that_some_are_kept_back():
    few = [{"input": torch.randn(count, 16)} for count in (7, 5)]
    parts = [len(part["input"]) for part in _enough_parts(few, 32)]
    assert sum(parts) == 12
    assert len(parts) >= HELD_BACK


def test_compensation_reads_the_first_examples_alone():
    given = [{"x": torch.arange(300.0)}, {"x": torch.arange(300.0, 600.0)}, {"x": torch.arange(9.0)}]
    read = _first(given, STARTED_FROM)
    assert [len(batch["x"]) for batch in read] == [300, 212]
    assert torch.cat([batch["x"] for batch in read]).equal(torch.arange(512.0))
    assert _first(given[:1], STARTED_FROM)[0]["x"].equal(given[0]["x"])


def test_fewer_examples_than_can_be_parted_are_refused():
    decision = Decision("learned_rounding", ("head",), Stage.QUANTIZE, {"steps": 1})
    few = [{"input": torch.randn(HELD_BACK - 1, 16)}]
    with pytest.raises(InputError, match="needs 8 calibration examples or more"):
        apply(residual(), Plan("residual", (decision,)), few)


def test_drops_without_blocks_are_refused():
    decision = Decision("learned_rounding", ("head",), Stage.QUANTIZE, {"input_drop": 0.2})
    with pytest.raises(ValueError, match="has nothing to drop"):
        LearnedRounding().predict(profile(residual()), decision)


def with_rounded_inputs(bits: int, **settings) -> Model:
    model = residual()
    names = tuple(layer.name for layer in profile(model).layers)
    learned = Decision("learned_rounding", names, Stage.QUANTIZE, {"bits": 3, **settings})
    rounds = Decision("dynamic_activations", names, Stage.ACTIVATIONS, {"activation_bits": bits})
    return apply(model, Plan(model.name, (learned, rounds)), batches(1))


def test_what_learns_with_rounded_inputs_does_better_with_them():
    model = residual()
    without = with_rounded_inputs(2, steps=200)
    within = with_rounded_inputs(2, steps=200, activation_bits=2)
    assert error(model, within) < 0.9 * error(model, without)


def test_inputs_are_left_as_they_were_after_learning():
    model = after(residual(), "learned_rounding", bits=3, steps=2, block_steps=2, activation_bits=4)
    assert all(layer.input_quantizer is None for _, layer in encoded_layers(model.module))


def test_what_is_dropped_plays_a_part():
    inputs = batches(2)[0]
    one, other = (
        after(residual(), "learned_rounding", bits=2, steps=30, activation_bits=3, input_drop=drop)
        for drop in (0.0, 1.0)
    )
    assert not torch.equal(one.outputs(inputs)[0], other.outputs(inputs)[0])
