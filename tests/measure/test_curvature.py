import pytest
import torch
from torch import nn

from flyweight.measure import curvature
from flyweight.measure.curvature import as_output_rows, as_rows, moments

LAYERS = {
    "linear": (nn.Linear(6, 4), (5, 6)),
    "tokens": (nn.Linear(6, 4), (5, 3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (5, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (5, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (5, 4, 7, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding="same"), (5, 4, 7, 7)),
    "pointwise": (nn.Conv2d(4, 6, 1, stride=2), (5, 4, 7, 7)),
    "dilated": (
        nn.Conv2d(4, 6, (3, 5), stride=(1, 2), dilation=(2, 1), padding=2, bias=False),
        (5, 4, 13, 9),
    ),
    "flat kernel": (nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 1)), (5, 4, 8, 9)),
    "low image": (nn.Conv2d(4, 6, 3), (5, 4, 4, 9)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (5, 4, 7, 7)),
}


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_rows_times_weight_are_the_layers_outputs(kind: str):
    layer, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = as_rows(layer, x)
    weight = layer.weight.reshape(rows.shape[0], -1, rows.shape[2])
    got = (rows @ weight.transpose(1, 2)).transpose(1, 2)  # parts, rows of the part, places
    output = layer(x)
    if layer.bias is not None:
        bias_shape = (-1,) if isinstance(layer, nn.Linear) else (1, -1) + (1,) * (output.dim() - 2)
        output = output - layer.bias.reshape(bias_shape)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    wanted = output.movedim(axis, 0).reshape(rows.shape[0], -1, rows.shape[1])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_moments_are_sums_over_all_places(kind: str, monkeypatch: pytest.MonkeyPatch):
    layer, shape = LAYERS[kind]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(shape, generator=generator) for _ in range(2)]
    outputs = [out + torch.randn(out.shape, generator=generator) for out in map(layer, batches)]
    monkeypatch.setattr(curvature, "UNFOLDED", 1)  # one example at a time
    got = moments(layer, batches, outputs)
    x = torch.cat([as_rows(layer, b) for b in batches], 1).double()
    z = torch.cat([as_output_rows(layer, b) for b in outputs], 1).double()
    if layer.bias is not None:
        z = z - layer.bias.reshape(len(z), 1, -1)
    torch.testing.assert_close(got.own, x.mT @ x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.wanted, z.mT @ x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.mean, x.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.wanted_mean, z.mean(1), atol=1e-5, rtol=1e-4)
    assert got.count == x.shape[1]
    centred, off = got.centred(), x - x.mean(1, keepdim=True)
    torch.testing.assert_close(centred.own, off.mT @ off, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(centred.wanted, (z - z.mean(1, keepdim=True)).mT @ off, atol=1e-3, rtol=1e-3)
    assert moments(layer, batches).wanted is None


def test_padded_tokens_do_not_count():
    layer = nn.Linear(6, 4)
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True, True, False], [True, False, False]])
    wanted = torch.randn(2, 3, 4)
    got = moments(layer, [x], [wanted], [keep])
    alone = moments(layer, [x[keep]], [wanted[keep]])
    assert got.count == 3
    torch.testing.assert_close(got.own, alone.own)
    torch.testing.assert_close(got.wanted, alone.wanted)


def test_values_that_are_not_finite_are_refused():
    x = torch.full((2, 6), torch.inf)
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments(nn.Linear(6, 4), [x])


@pytest.mark.parametrize("kind", ["tokens", "reflected", "conv1d"])
def test_an_empty_batch_changes_nothing(kind: str):
    layer, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moments(layer, [x[:0], x]).own, moments(layer, [x]).own)
