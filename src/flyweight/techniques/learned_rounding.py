"""Learned rounding: codes and scales of a block trained until the block puts out what the float model's does.

Starts from GPTQ. Blocks are taken in order, each on the outputs of those before it; a part of the calibration
examples is kept back to choose the state that is kept, so that no block is worse than it started.

Source: Nagel et al. 2020, arXiv:2004.10568 (AdaRound); Li et al. 2021, arXiv:2102.05426 (BRECQ: blocks);
Wei et al. 2022, arXiv:2203.05740 (QDrop); Cheng et al. 2023, arXiv:2309.05516 (AutoRound: few steps, scales
too).
Differs: codes start whole, learn with straight-through gradients and may leave their step; nothing pulls them
towards whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, fx, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.measure.blocks import Block, Stream, blocks, extracted
from flyweight.measure.graph import capture
from flyweight.model import copied
from flyweight.techniques import _settings
from flyweight.techniques.gptq import GPTQ, multiplies_alone
from flyweight.tensors.activation import straight_through
from flyweight.tensors.affine import AffineWeight, over_columns
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import EncodedLayer, EncodedWeight

if TYPE_CHECKING:
    from flyweight.model import Model

HELD_BACK = 8  # one batch in so many chooses the state that is kept
CHECKS = 8  # times that the state is looked at


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a block learns.

    Attributes:
        steps: Of one batch each.
        code_rate: Largest change of a code's offset in a step, in codes; falls to 0.
        scale_rate: Of a scale, relative; falls to 0.
        input_drop: Probability with which a value read is the float model's (QDrop).
        seed: Of the order of batches and of the drops.
    """

    steps: int
    code_rate: float
    scale_rate: float
    input_drop: float
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for name in ("code_rate", "scale_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.input_drop <= 1:
            raise ValueError(f"input_drop must be in 0..1, got {self.input_drop}")


@final
class LearnedRounding:
    """See the module's docstring."""

    name = "learned_rounding"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {
        **GPTQ.defaults,
        "steps": 400,
        "code_rate": 0.01,
        "scale_rate": 0.001,
        "input_drop": 0.5,
        "seed": 0,
    }

    def propose(self, profile: ModelProfile) -> Iterable[Decision]:
        """As GPTQ."""
        for decision in GPTQ().propose(profile):
            yield Decision(self.name, decision.layers, self.stage, decision.settings)

    def predict(self, profile: ModelProfile, decision: Decision) -> ModelProfile:
        """Raises ValueError for settings out of range."""
        self._schedule(decision)
        return GPTQ().predict(profile, self._start(decision))

    def apply(self, model: Model, decision: Decision, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Change ``model`` in place; its module becomes a graph. Raises as GPTQ does."""
        graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
        teacher = cast("fx.GraphModule", copied(graph))
        model.module = graph
        GPTQ().apply(model, self._start(decision), batches)
        schedule = self._schedule(decision)
        learned = [name for name in decision.layers if multiplies_alone(graph, name)]
        _learn_blocks(teacher, graph, batches, learned, schedule)

    def _start(self, decision: Decision) -> Decision:
        settings = _settings.complete(decision, self.defaults)
        return Decision(GPTQ.name, decision.layers, self.stage, {k: settings[k] for k in GPTQ.defaults})

    def _schedule(self, decision: Decision) -> Schedule:
        settings = _settings.complete(decision, self.defaults)
        own = {key: value for key, value in settings.items() if key not in GPTQ.defaults}
        return Schedule(**own)  # type: ignore[arg-type]


@final
class _Learning(nn.Module):
    """The encoder of one layer while it learns: codes between whole numbers, and changes of scales."""

    def __init__(self, stored: AffineWeight) -> None:
        super().__init__()
        self.stored = stored
        self.steps = nn.Parameter(stored.codes.float())
        self.stretch = nn.Parameter(torch.zeros_like(stored.scale))

    def forward(self, weight: Tensor, before: EncodedWeight | None = None) -> AffineWeight:
        """As it would be stored now."""
        grid, old = self.stored.form.grid, self.stored
        codes = self.steps.detach().clamp(grid.lowest, grid.highest).round().to(old.codes.dtype)
        return replace(old, codes=codes, scale=self._scale().detach())

    def projected(self, weight: Tensor, before: EncodedWeight | None = None) -> Tensor:
        """The decoded weight, with gradients to codes and scales."""
        grid, mask = self.stored.form.grid, self.stored.mask
        steps = self.steps.clamp(grid.lowest, grid.highest)
        centred = straight_through(steps, steps.round()) - self._zero(steps.shape[1])
        decoded = centred * self._wide(self._scale())
        return (decoded if mask is None else decoded * mask).reshape(weight.shape)

    def _scale(self) -> Tensor:
        return self.stored.scale * self.stretch.exp()

    def _wide(self, scale: Tensor) -> Tensor:
        return over_columns(scale, self.stored.form, self.stored.codes.shape[1])

    def _zero(self, columns: int) -> Tensor:
        zero = self.stored.zero_point
        return torch.zeros(()) if zero is None else over_columns(zero.float(), self.stored.form, columns)


def _learn_blocks(
    teacher: fx.GraphModule,
    graph: fx.GraphModule,
    batches: Sequence[Mapping[str, Tensor]],
    layers: Sequence[str],
    schedule: Schedule,
) -> None:
    wanted, learning = blocks(teacher, layers), blocks(graph, layers)
    float_values, values = Stream(teacher, batches), Stream(graph, batches)
    for index, (goal, block) in enumerate(zip(wanted, learning, strict=True)):
        float_reads = [float_values.inputs(goal, i) for i in range(len(batches))]
        reads = [values.inputs(block, i) for i in range(len(batches))]
        float_values.advance(goal, wanted[index + 1 :])
        targets = float_values.latest
        _learn(graph, block, Examples(reads, float_reads, targets), schedule)
        values.advance(block, learning[index + 1 :])


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """What a block reads, what it reads in the float model, and what it should put out; batch by batch."""

    reads: Sequence[tuple[Any, ...]]
    float_reads: Sequence[tuple[Any, ...]]
    targets: Sequence[tuple[Any, ...]]


def _learn(graph: fx.GraphModule, block: Block, examples: Examples, schedule: Schedule) -> None:
    learning: list[tuple[EncodedLayer, _Learning]] = []
    for name in block.layers:
        layer = graph.get_submodule(name)
        if isinstance(layer, EncodedLayer) and isinstance(stored := layer.encoding(), AffineWeight):
            learning.append((layer, _Learning(stored)))
    kept = [(layer.encoders, layer.layer._parameters.get("bias")) for layer, _ in learning]
    for (layer, encoder), (encoders, bias) in zip(learning, kept, strict=True):
        layer.encoders = (*encoders[:-1], encoder)
        if bias is not None:
            layer.layer.bias = nn.Parameter(bias.detach().clone())
    improved = _train(extracted(graph, block), learning, examples, schedule)
    for (layer, encoder), (encoders, bias) in zip(learning, kept, strict=True):
        layer.encoders = encoders
        if improved:
            _keep(layer, encoder)
        elif bias is not None:
            layer.layer.bias = bias


def _keep(layer: EncodedLayer, learned: _Learning) -> None:
    stored = learned(layer.layer.weight)
    layer.layer.weight = nn.Parameter(stored.decode())
    layer.encoders = layer.encoders[:-1]
    layer.add_encoder(
        AffineEncoder(stored.form, scale=stored.scale, zero_point=stored.zero_point, mask=stored.mask)
    )


def _train(
    run: nn.Module,
    learning: Sequence[tuple[EncodedLayer, _Learning]],
    examples: Examples,
    schedule: Schedule,
) -> bool:
    """Learn, in place; whether the state left behind is better than the first."""
    every = list(range(len(examples.reads)))
    held = every[HELD_BACK - 1 :: HELD_BACK] or every
    seen = [i for i in every if i not in held] or every
    optimizer = _optimizer(learning, schedule)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
    generator = torch.Generator().manual_seed(schedule.seed)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    first = best = _held_loss(run, examples, held)
    state = [p.detach().clone() for p in parameters]
    interval = max(1, schedule.steps // CHECKS)
    for step in range(1, schedule.steps + 1):
        chosen = seen[int(torch.randint(len(seen), (), generator=generator))]
        optimizer.zero_grad()
        reads = _mixed(examples, chosen, schedule.input_drop, generator)
        _loss(run(*reads), examples.targets[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        slower.step()
        if step % interval == 0 and (loss := _held_loss(run, examples, held)) < best:
            best, state = loss, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, state, strict=True):
            parameter.copy_(value)
    return best < first


def _optimizer(
    learning: Sequence[tuple[EncodedLayer, _Learning]], schedule: Schedule
) -> torch.optim.Optimizer:
    found = (layer.layer._parameters.get("bias") for layer, _ in learning)
    biases = [bias for bias in found if bias is not None]
    size = max((float(b.detach().abs().mean()) for b in biases), default=0.0)
    groups = [
        {"params": [encoder.steps for _, encoder in learning], "lr": schedule.code_rate},
        {"params": [encoder.stretch for _, encoder in learning], "lr": schedule.scale_rate},
        {"params": biases, "lr": schedule.scale_rate * size},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


def _mixed(examples: Examples, batch: int, drop: float, generator: torch.Generator) -> tuple[Any, ...]:
    """What the block reads, each value with probability ``drop`` as the float model reads it."""
    mixed = []
    for value, exact in zip(examples.reads[batch], examples.float_reads[batch], strict=True):
        if drop and isinstance(value, Tensor) and value.is_floating_point() and value is not exact:
            takes = torch.rand(value.shape, generator=generator) < drop
            value = torch.where(takes, exact, value)
        mixed.append(value)
    return tuple(mixed)


def _loss(outputs: tuple[Any, ...], targets: tuple[Any, ...]) -> Tensor:
    """Squared error of the float outputs, relative to their size."""
    total = torch.zeros(())
    for output, target in zip(outputs, targets, strict=True):
        if isinstance(target, Tensor) and target.is_floating_point():
            size = target.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
            total = total + (output - target).square().mean() / size
    return total


@torch.no_grad()
def _held_loss(run: nn.Module, examples: Examples, held: Sequence[int]) -> float:
    losses = [_loss(run(*examples.reads[i]), examples.targets[i]) for i in held]
    return float(torch.stack(losses).mean())
