import pytest
import torch
from torch import nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.profile import profile
from flyweight.model import Model
from flyweight.techniques.gptq import GPTQ
from flyweight.tensors.encoded import encoded_layers, thaw
from flyweight.testing.strategies import NETWORKS, batches_for


def plan_of(model: Model, technique: str, **settings) -> Plan:
    names = tuple(layer.name for layer in profile(model).layers)
    return Plan(model.name, (Decision(technique, names, Stage.QUANTIZE, settings),))


def correlated(seed: int, count: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, 24, generator=generator) @ mixing


def deep(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    return Model("deep", module, {"input": torch.zeros(1, 24)})


def output_error(model: Model, result: Model, inputs: torch.Tensor) -> float:
    wanted, got = model.outputs({"input": inputs})[0], result.outputs({"input": inputs})[0]
    return float((wanted - got).square().sum() / wanted.square().sum())


def reads_of(model: Model, layer: str, inputs: torch.Tensor) -> torch.Tensor:
    read = []
    handle = model.module.get_submodule(layer).register_forward_hook(lambda _, args, __: read.append(args[0]))
    model.outputs({"input": inputs})
    handle.remove()
    return read[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_outputs_are_closer_than_with_rounding_to_nearest(bits: int, granularity: str):
    model, batches = deep(), [{"input": correlated(1)}]
    common = {"bits": bits, "granularity": granularity, "group_size": 8, "symmetric": False}
    near = apply(model, plan_of(model, "weight_only", range_method="mse", **common), batches)
    ours = apply(model, plan_of(model, "gptq", **common), batches)
    unseen = correlated(2)
    assert output_error(model, ours, unseen) < 0.6 * output_error(model, near, unseen)


def test_later_layers_make_up_for_earlier_ones():
    model, batches = deep(), [{"input": correlated(1)}]
    names = [layer.name for layer in profile(model).layers]
    plan = plan_of(model, "gptq", bits=2)
    together = apply(model, plan, batches)
    alone = model.clone()  # each layer rounded as if it read what the float model reads
    for name in names:
        part = apply(model, Plan("deep", (Decision("gptq", (name,), Stage.QUANTIZE, {"bits": 2}),)), batches)
        layer = dict(encoded_layers(part.module))[name]
        alone.module.set_submodule(name, layer)
    unseen = correlated(2)
    assert output_error(model, together, unseen) < output_error(model, alone, unseen)


@torch.no_grad()
def test_towards_the_layer_a_first_layer_is_solved_alike_and_a_later_one_by_itself():
    model, batches = deep(), [{"input": correlated(1)}]
    towards = {
        target: apply(model, plan_of(model, "gptq", bits=2, target=target), batches)
        for target in ("model", "layer")
    }
    layers = {target: dict(encoded_layers(found.module)) for target, found in towards.items()}
    weights = {target: [layer.weight for layer in found.values()] for target, found in layers.items()}
    assert torch.equal(weights["model"][0], weights["layer"][0])
    for index, at in ((2, 1), (4, 2)):  # what the float layer makes of what the quantized model gives it
        reads = reads_of(towards["layer"], str(index), correlated(1))
        wanted = model.module[index](reads)
        lost = [
            float((nn.functional.linear(reads, weights[t][at], layers[t][str(index)].bias) - wanted).norm())
            for t in ("layer", "model")
        ]
        assert lost[0] < lost[1]
    unseen = correlated(2)
    assert output_error(model, towards["model"], unseen) < output_error(model, towards["layer"], unseen)


def test_decisions_of_different_settings_are_solved_in_one_walk():
    model, batches = deep(), [{"input": correlated(1)}]
    whole = apply(model, plan_of(model, "gptq", bits=2), batches)
    mixed = (  # as above, but for one default that is spelt out: these decisions are not joined
        Decision("gptq", ("4", "0"), Stage.QUANTIZE, {"bits": 2}),
        Decision("gptq", ("2",), Stage.QUANTIZE, {"bits": 2, "symmetric": False}),
    )
    parts = apply(model, Plan("deep", mixed), batches)
    for (name, one), (_, other) in zip(
        encoded_layers(whole.module), encoded_layers(parts.module), strict=True
    ):
        assert torch.equal(one.encoding().decode(), other.encoding().decode()), name


def test_each_layer_gets_the_width_of_its_decision():
    model, batches = deep(), [{"input": correlated(1)}]
    widths = {"0": 8, "2": 2, "4": 4}
    decisions = (Decision("gptq", (name,), Stage.QUANTIZE, {"bits": b}) for name, b in widths.items())
    result = apply(model, Plan("deep", tuple(decisions)), batches)
    assert {layer.name: layer.code_bits for layer in profile(result).layers} == widths


def test_mean_outputs_stay_where_biases_can_take_the_shift():
    model, batches = deep(), [{"input": correlated(1) + 3}]
    result = apply(model, plan_of(model, "gptq", bits=2), batches)
    wanted, got = (m.outputs(batches[0])[0].mean(0) for m in (model, result))
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


def test_a_thawed_layer_goes_on_from_the_compensated_codes():
    model, batches = deep(), [{"input": correlated(1)}]
    result = apply(model, plan_of(model, "gptq", bits=3), batches)
    before = result.outputs(batches[0])[0]
    thaw(result.module)
    torch.testing.assert_close(result.outputs(batches[0])[0], before)


def test_inputs_never_seen_do_no_harm():
    model = deep()
    inputs = correlated(1)
    inputs[:, :10] = 0
    result = apply(model, plan_of(model, "gptq", bits=4), [{"input": inputs}])
    assert output_error(model, result, inputs) < 0.01
    assert output_error(model, result, correlated(2)) < 0.3  # those weights are rounded, not lost


@pytest.mark.parametrize(
    "inputs",
    [torch.ones(1, 24), torch.full((256, 24), 3.0), 1e4 + correlated(3), torch.zeros(8, 24)],
    ids=["one example", "constant", "a large mean", "nothing"],
)
@pytest.mark.parametrize("technique", ["gptq", "binary"])
def test_inputs_that_hardly_change_are_taken(technique: str, inputs: torch.Tensor):
    model = deep()
    result = apply(model, plan_of(model, technique), [{"input": inputs}])
    assert torch.isfinite(result.outputs({"input": inputs})[0]).all()
    first = dict(encoded_layers(result.module))["0"]
    assert first.weight.norm() < 3 * model.module[0].weight.norm()


def test_a_large_mean_leaves_rows_better_than_nearest():
    model, inputs = deep(), 1000 + torch.randn(512, 24, generator=torch.Generator().manual_seed(0))
    model.module[0].bias = None
    lost = []
    for technique, more in (("gptq", {"bias_correction": False}), ("weight_only", {"range_method": "mse"})):
        settings = {"bits": 4, "symmetric": False, **more}
        plan = Plan("deep", (Decision(technique, ("0",), Stage.QUANTIZE, settings),))
        layer = dict(encoded_layers(apply(model, plan, [{"input": inputs}]).module))["0"]
        lost.append(((inputs.double() @ (layer.weight - model.module[0].weight).double().T) ** 2).sum(0))
    assert (lost[0] <= lost[1]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("technique", ["gptq", "binary", "learned_rounding"])
def test_models_of_other_floats_stay_so(technique: str, dtype: torch.dtype):
    model = Model("deep", deep().module.to(dtype), {"input": torch.zeros(1, 24, dtype=dtype)})
    settings = {"steps": 2} if technique == "learned_rounding" else {}
    batches = [{"input": correlated(1).to(dtype)}]
    result = apply(model, plan_of(model, technique, **settings), batches)
    assert result.outputs(batches[0])[0].dtype == dtype


def test_a_group_size_alone_means_groups():
    model = deep()
    groups = GPTQ().predict(
        profile(model), Decision("gptq", ("0",), Stage.QUANTIZE, {"bits": 4, "group_size": 8})
    )
    assert groups.by_name["0"].group_size == 8


def test_shared_weights_are_rounded_to_nearest_and_stay_shared():
    model = NETWORKS["tied"]()
    result = apply(model, plan_of(model, "gptq"), batches_for(model))
    tied = [layer for layer in profile(result).layers if layer.tied_to]
    assert len(tied) == 1


def test_calibration_data_are_asked_for():
    model = deep()
    with pytest.raises(InputError, match="gptq needs calibration data"):
        apply(model, plan_of(model, "gptq"), [])


def test_values_that_are_not_finite_name_the_layer():
    model = deep()
    with pytest.raises(UnsupportedError, match="layer '0' reads NaN or infinite values"):
        apply(model, plan_of(model, "gptq"), [{"input": torch.full((4, 24), torch.inf)}])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("damping", 0.0, "damping must be above 0"),
        ("target", "block", "target must be one of"),
        ("rounds", -1, "rounds must be"),
        ("bits", 1, "bits must be"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: float | str, message: str):
    model = deep()
    with pytest.raises(ValueError, match=message):
        GPTQ().predict(profile(model), Decision("gptq", ("0",), Stage.QUANTIZE, {setting: value}))
