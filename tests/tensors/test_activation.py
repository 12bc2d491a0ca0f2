"""Quantizers of activations against ONNX Runtime's operators, value by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from flyweight.tensors.activation import ChannelQuantizer, DynamicQuantizer, StaticQuantizer, straight_through

CASES = {
    "normal": torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)),
    "positive": torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(1)) * 9,
    "negative": -torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(2)),
    "zero": torch.zeros(1, 2, 3),
    "halves": torch.arange(-8, 8).reshape(2, 2, 4) / 2,
    "huge": torch.tensor([[[1e30, -2e29, 3.0]]]),
}


def in_onnx_runtime(nodes, inputs, outputs):
    """The outputs of a graph of ``nodes`` on arrays by name."""
    import onnxruntime

    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
    )
    for info in graph.output:
        info.ClearField("type")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


@pytest.mark.parametrize("x", CASES.values(), ids=CASES.keys())
def test_static_quantizer_equals_quantize_linear(x):
    scale, zero = np.array(0.037, np.float32), np.array(91, np.uint8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    (wanted,) = in_onnx_runtime(nodes, {"x": x.numpy(), "s": scale, "z": zero}, ["y"])
    np.testing.assert_array_equal(StaticQuantizer(0.037, 91)(x).numpy(), wanted)


@pytest.mark.parametrize("x", CASES.values(), ids=CASES.keys())
def test_dynamic_quantizer_equals_dynamic_quantize_linear(x):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    (wanted,) = in_onnx_runtime(nodes, {"x": x.numpy()}, ["y"])
    np.testing.assert_allclose(DynamicQuantizer("tensor")(x).numpy(), wanted, rtol=1e-6, atol=1e-30)


def test_channel_quantizer_equals_quantize_linear_by_channel():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scale, zero = torch.tensor([0.01, 0.02, 0.03]), torch.tensor([0, 128, 200], dtype=torch.uint8)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1)
    padded = torch.nn.functional.pad(x, (1, 2, 3, 0))
    (wanted,) = in_onnx_runtime([node], {"x": padded.numpy(), "s": scale.numpy(), "z": zero.numpy()}, ["q"])
    codes = ChannelQuantizer(scale, zero, (1, 2, 3, 0))(x)
    np.testing.assert_array_equal(codes.numpy(), wanted.astype(np.float32))


def test_channel_quantizer_pads_with_the_code_of_zero():
    codes = ChannelQuantizer(torch.ones(1), torch.tensor([7], dtype=torch.uint8), (1, 0, 0, 0))(
        torch.ones(1, 1, 1, 1)
    )
    assert codes.flatten().tolist() == [7.0, 8.0]


def test_by_token_an_outlier_does_not_coarsen_the_other_tokens():
    x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    x[0, 2] *= 1000
    others = [0, 1, 3]
    by_tensor = (DynamicQuantizer("tensor")(x) - x)[0, others].abs().max()
    by_token = (DynamicQuantizer("token")(x) - x)[0, others].abs().max()
    assert by_token * 100 < by_tensor


def test_by_token_error_is_at_most_half_a_step():
    x = CASES["normal"]
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((DynamicQuantizer("token")(x) - x).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_zeros_stay_zeros_at_run_time(granularity):
    assert not DynamicQuantizer(granularity)(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("x", CASES.values(), ids=CASES.keys())
def test_static_codes_are_within_their_width(x, bits):
    zero_point = 2 ** (bits - 1) - 1
    steps = StaticQuantizer(0.25, zero_point, bits)(x) / 0.25
    assert torch.equal(steps, steps.round())
    assert steps.min() >= -zero_point
    assert steps.max() <= 2**bits - 1 - zero_point
    inside = (x / 0.25).clamp(-zero_point, 2**bits - 1 - zero_point)
    assert ((steps - inside).abs() <= 0.5).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["tensor", "token"])
@pytest.mark.parametrize("x", CASES.values(), ids=CASES.keys())
def test_dynamic_quantizer_of_any_width_is_off_by_at_most_a_step(x, granularity, bits):
    quantizer = DynamicQuantizer(granularity, bits)
    vectors = x.reshape(-1, x.shape[-1]) if granularity == "token" else x.reshape(1, -1)
    rounded = quantizer(x).reshape(vectors.shape)
    low, high = vectors.amin(1).clamp(max=0), vectors.amax(1).clamp(min=0)
    if granularity == "token":
        step = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
    else:
        step = (high - low) / (2**bits - 1)
    assert ((rounded - vectors).abs() <= step[:, None] * 1.0001).all()
    assert all(len(vector.unique()) <= 2**bits for vector in rounded)


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_fewer_bits_lose_more(granularity):
    x = CASES["normal"]
    errors = [float((DynamicQuantizer(granularity, b)(x) - x).square().sum()) for b in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [0, 1, 9, 16])
def test_quantizers_of_other_widths_are_refused(bits):
    for make in (lambda: StaticQuantizer(1.0, 0, bits), lambda: DynamicQuantizer("tensor", bits)):
        with pytest.raises(ValueError, match=f"bits of activations must be in 2..8, got {bits}"):
            make()


@pytest.mark.parametrize(
    "quantizer", [StaticQuantizer(0.1, 128), DynamicQuantizer("tensor"), DynamicQuantizer("token")]
)
def test_gradients_go_straight_through(quantizer):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    quantizer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_straight_through_keeps_the_rounded_value():
    exact = torch.tensor([0.4, 1.6], requires_grad=True)
    rounded = straight_through(exact, exact.round())
    assert rounded.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("scale", "zero_point", "bits", "reason"),
    [
        (0.0, 0, 8, "scale must be above 0"),
        (float("nan"), 0, 8, "scale must be above 0"),
        (1.0, 256, 8, "in 0..255"),
        (1.0, 16, 4, "in 0..15"),
    ],
)
def test_static_quantizer_refuses_what_is_out_of_range(scale, zero_point, bits, reason):
    with pytest.raises(ValueError, match=reason):
        StaticQuantizer(scale, zero_point, bits)
