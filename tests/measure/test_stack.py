import pytest
import torch
from torch import nn

from flyweight.errors import InputError, UnsupportedError
from flyweight.measure.block_call import BlockInputs, block_model, block_module, outputs_of
from flyweight.measure.stack import Before, Side, find_stack, route
from flyweight.model import copied


class Block(nn.Module):
    """Reads a mask and a flag beside what the block before put out; returns more than is passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, mask=None, shift=None, twice=False):
        y = self.layer(x) if mask is None else self.layer(x) * mask[..., None]
        y = y if shift is None else y + shift
        return (y * 2 if twice else y) + x, None


class Net(nn.Module):
    """Three blocks between two layers; subclasses call the blocks in other ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.requires_grad_(False)

    def forward(self, x, mask):
        shift = torch.arange(x.shape[1])[:, None] / 10
        y = self.first(x)
        for index, block in enumerate(self.blocks):
            y = block(y, mask=mask, shift=shift, twice=index == 1)[0]
        return self.last(y)


def batches(*sizes: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(size, 5, 3, generator=generator),
            "mask": (torch.rand(size, 5, generator=generator) > 0.2).float(),
        }
        for size in sizes
    ]


def routed(module: nn.Module, given):
    paths = find_stack(module, "blocks")
    return paths, route(module, paths, copied(module.get_submodule(paths[0])), given, keep=list)


def test_the_stack_is_the_list_with_the_most_weights():
    net = nn.ModuleDict({"few": nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)]), "many": Net()})
    assert find_stack(net) == ("many.blocks.0", "many.blocks.1", "many.blocks.2")
    assert find_stack(net, "few")[-1] == "few.8"


def test_a_sequential_model_is_a_stack_itself():
    assert find_stack(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ("0", "1")


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (nn.Linear(2, 2), None, "the model has no list of blocks"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), None, "the model has no list of blocks"),
        (Net(), "layers", "'layers' is no list of blocks of one class; the model has 'blocks'"),
    ],
)
def test_a_model_without_such_a_list_is_refused(module: nn.Module, name: str | None, message: str):
    with pytest.raises(InputError, match=message):
        find_stack(module, name)


def test_the_route_says_where_each_argument_comes_from():
    _, found = routed(Net(), batches(2, 3))
    assert [type(leaf) for leaf in found.calls[0].leaves] == [Side, Side, Side, bool]
    assert [type(leaf) for leaf in found.calls[2].leaves] == [Before, Side, Side, bool]
    assert [call.leaves[3] for call in found.calls] == [False, True, False]
    assert found.calls[1].leaves[1:3] == found.calls[2].leaves[1:3]
    assert found.outputs == (0,)
    (constant,) = found.constants.values()
    assert constant.shape == (5, 1)


@torch.no_grad()
def test_blocks_run_one_by_one_compute_what_the_model_computes():
    net, given = Net(), batches(2, 3)
    paths, found = routed(net, given)
    before = None
    for path, call in zip(paths, found.calls, strict=True):
        inputs = BlockInputs(call, found, before, [{}, {}])
        before = list(outputs_of(block_module(net.get_submodule(path), call, found), inputs))
    for (last,), batch in zip(before, given, strict=True):
        assert torch.equal(net.last(last), net(**batch))


def test_a_block_is_a_model_with_one_example():
    net, given = Net(), batches(2)
    paths, found = routed(net, given)
    inputs = BlockInputs(found.calls[0], found, None, [{"attention_mask": given[0]["mask"]}])
    model = block_model("b", block_module(net.get_submodule(paths[0]), found.calls[0], found), inputs)
    assert {name: tuple(x.shape) for name, x in model.example_inputs.items()} == {
        "read_0": (1, 5, 4),
        "read_1": (1, 5),
    }
    assert set(inputs[0]) == {"read_0", "read_1", "attention_mask"}
    assert model.output_shapes() == [(1, 5, 4)]


def test_routing_runs_no_block_but_the_first_and_leaves_the_model_as_it_was():
    net = Net()
    for block in net.blocks[1:]:
        block.layer.weight = nn.Parameter(torch.empty(4, 4, device="meta"), requires_grad=False)
    _, found = routed(net, batches(2))
    assert len(found.calls) == 3
    assert all("forward" not in vars(block) for block in net.blocks)


class Between(Net):
    def forward(self, x, mask):
        y = self.first(x)
        for block in self.blocks:
            y = torch.relu(block(y)[0])
        return y


class InPlace(Net):
    def forward(self, x, mask):
        y = self.first(x)
        for block in self.blocks:
            y = block(y)[0]
            y += 1
        return y


class Skipping(Net):
    def forward(self, x, mask):
        y = self.first(x)
        one = self.blocks[0](y)[0]
        two = self.blocks[1](one)[0]
        return self.blocks[2](two, shift=one)[0]


class Unordered(Net):
    def forward(self, x, mask):
        y = self.first(x)
        for block in reversed(self.blocks):
            y = block(y)[0]
        return y


class Partly(Net):
    def forward(self, x, mask):
        return self.blocks[0](self.first(x))[0]


class Caching(Net):
    def forward(self, x, mask):
        y = self.first(x)
        for block in self.blocks:
            y = block(y, mask=object())[0]
        return y


class Sized(Net):
    def forward(self, x, mask):
        y = self.first(x)
        for block in self.blocks:
            y = block(y, twice=len(x) > 1)[0]
        return y


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Between, "what block 'blocks.1' reads is computed from outputs of blocks"),
        (InPlace, "what block 'blocks.1' reads is changed between the blocks"),
        (Skipping, "block 'blocks.2' reads the output of 'blocks.0' too"),
        (Unordered, "block 'blocks.2' is called as number 1"),
        (Partly, "only 1 of 3 blocks are called"),
        (Caching, "block 'blocks.0' is called with a value of type object"),
        (Sized, "depends on the number of examples"),
    ],
)
def test_blocks_that_are_no_chain_are_refused(kind: type[Net], message: str):
    with pytest.raises(UnsupportedError, match=message):
        routed(kind(), batches(2))


def test_data_that_the_model_does_not_take_are_told_so():
    with pytest.raises(InputError, match="the model does not run on the calibration data: TypeError"):
        routed(Net(), [{"x": torch.zeros(1, 5, 3)}])


def test_a_constant_that_differs_between_batches_is_refused():
    class Drifting(Net):
        def forward(self, x, mask):
            y, shift = self.first(x), x.mean() + torch.zeros(5, 1)
            for block in self.blocks:
                y = block(y, shift=shift)[0]
            return y

    given = batches(1, 1)
    with pytest.raises(UnsupportedError, match="has no axis of examples, and differs from batch to batch"):
        routed(Drifting(), given)
