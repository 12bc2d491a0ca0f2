import torch
from torch import nn

from flyweight.measure.blocks import Stream, blocks, extracted
from flyweight.measure.graph import capture
from flyweight.model import Model


class Attention(nn.Module):
    """Two residual blocks of a transformer, with a mask that passes by both."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x, mask):
        kept = mask[:, :, None].float()
        weights = torch.softmax(self.query(x) @ x.transpose(1, 2), -1)
        x = x + self.out(weights @ self.value(x)) * kept
        x = x + self.down(torch.relu(self.up(x))) * kept
        return self.head(x)


def attention() -> Model:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, 5, 8), "mask": torch.ones(1, 5, dtype=torch.bool)}
    return Model("attention", Attention(), inputs)


NAMES = ("query", "value", "out", "up", "down", "head")


def batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(3, 5, 8, generator=generator),
        "mask": torch.rand(3, 5, generator=generator) < 0.7,
    }


def test_blocks_end_where_one_value_is_left():
    found = blocks(capture(attention()), NAMES)
    assert [block.layers for block in found] == [("query", "value", "out"), ("up", "down"), ("head",)]
    assert all(len(block.outputs) == 1 for block in found[1:])


def test_blocks_one_after_the_other_compute_the_model():
    model = attention()
    graph = capture(model)
    found, batches = blocks(graph, NAMES), [batch(0), batch(1)]
    stream = Stream(graph, batches)
    for index, block in enumerate(found):
        stream.advance(block, found[index + 1 :])
    for inputs, outputs in zip(batches, stream.latest, strict=True):
        torch.testing.assert_close(outputs[0], model.outputs(inputs)[0])


def test_only_chosen_layers_cut():
    found = blocks(capture(attention()), ("up",))
    assert [block.layers for block in found] == [("up",)]
    found = blocks(capture(attention()), ("head",))
    assert [block.layers for block in found] == [("head",)]


def test_an_extracted_block_shares_the_graphs_layers():
    graph = capture(attention())
    block = blocks(graph, NAMES)[1]
    run = extracted(graph, block)
    assert run.get_submodule("up") is graph.get_submodule("up")
    stream = Stream(graph, [batch(0)])
    stream.advance(blocks(graph, NAMES)[0], [block])
    before = run(*stream.inputs(block, 0))[0].clone()
    graph.get_submodule("up").weight.data.mul_(2)
    assert not torch.allclose(run(*stream.inputs(block, 0))[0], before)


def test_a_network_that_returns_several_values_is_one_block_at_its_end():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x):
            x = self.body(x)
            return self.left(x), self.right(x)

    torch.manual_seed(0)
    model = Model("two", Two(), {"x": torch.randn(1, 4)})
    graph = capture(model)
    found = blocks(graph, ("body", "left", "right"))
    assert [block.layers for block in found] == [("body",), ("left", "right")]
    stream = Stream(graph, [{"x": torch.randn(2, 4)}])
    stream.advance(found[0], found[1:])
    stream.advance(found[1], [])
    assert [tuple(value.shape) for value in stream.latest[0]] == [(2, 2), (2, 3)]
