"""Learned rounding: codes and scales trained until the model puts out what the float model does.

Starts from GPTQ on some of the calibration examples. All layers learn together, towards the outputs of the
model; before that, each block can towards its own, on the outputs of those before it. A part of the
calibration examples is kept back to choose the state that is kept, so that neither makes the outputs worse.

Source: Nagel et al. 2020, arXiv:2004.10568 (AdaRound); Li et al. 2021, arXiv:2102.05426 (BRECQ: blocks);
Wei et al. 2022, arXiv:2203.05740 (QDrop); Cheng et al. 2023, arXiv:2309.05516 (AutoRound: few steps, scales
too).
Differs: the sources stop at blocks. From the start that GPTQ now gives, blocks gain little, and cost as much
time: of the 3-bit weights of stories260K, all layers together gained three times as much in a tenth of the
steps. Codes start whole, learn with straight-through gradients and may leave their step; nothing pulls them
towards whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor, fx, nn

from flyweight.core.layer import ModelProfile
from flyweight.core.plan import Decision, Scalar, Stage
from flyweight.errors import InputError
from flyweight.measure.blocks import Block, Stream, blocks, extracted, whole
from flyweight.measure.curvature import kept_tokens
from flyweight.measure.graph import capture
from flyweight.model import copied
from flyweight.recover.losses import divergence
from flyweight.techniques import _settings
from flyweight.techniques._learned_codes import LearnedCodes, RoundedInputs
from flyweight.techniques.gptq import GPTQ, multiplies_alone
from flyweight.tensors.activation import highest_code
from flyweight.tensors.affine import AffineWeight
from flyweight.tensors.affine_encoder import AffineEncoder
from flyweight.tensors.encoded import EncodedLayer

if TYPE_CHECKING:
    from flyweight.model import Model

HELD_BACK = 8  # one batch in so many chooses the state that is kept
HELD_BACK_MOST = 16  # batches
STARTED_FROM = 512  # examples, the first, that GPTQ reads: more change little, and take it long
CHECKS = 8  # times that the state is looked at
OUTPUTS = ("values", "logits")


@final
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast codes and scales are learned.

    Attributes:
        steps: Of all layers together; 0 is none.
        block_steps: Of each block, before; 0 is none.
        batch_size: Examples in one step.
        outputs: What the model puts out: ``values`` are to be close, of ``logits`` the probabilities.
        code_rate: Largest change of a code's offset in a step, in codes; falls to 0.
        scale_rate: Of a scale, relative; falls to 0.
        activation_bits: 2..8 rounds what each layer reads while it learns, as a later stage will; 0 does not.
        input_drop: Probability with which a value that a block reads is the float model's, and one that is
            rounded to ``activation_bits`` is left as it is (QDrop).
        seed: Of the order of batches and of the drops.
    """

    steps: int
    block_steps: int
    batch_size: int
    outputs: str
    code_rate: float
    scale_rate: float
    activation_bits: int
    input_drop: float
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("block_steps", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.outputs not in OUTPUTS:
            raise ValueError(f"outputs must be one of {', '.join(OUTPUTS)}, got {self.outputs!r}")
        for name in ("code_rate", "scale_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.activation_bits:
            highest_code(self.activation_bits)  # raises where there is none
        if not 0 <= self.input_drop <= 1:
            raise ValueError(f"input_drop must be in 0..1, got {self.input_drop}")


@final
class LearnedRounding:
    """See the module's docstring."""

    name = "learned_rounding"
    stage = Stage.QUANTIZE
    defaults: Mapping[str, Scalar] = {
        **GPTQ.defaults,
        "steps": 300,
        "block_steps": 0,
        "batch_size": 32,
        "outputs": "values",
        "code_rate": 0.01,
        "scale_rate": 0.001,
        "activation_bits": 0,
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
        """Change ``model`` in place; its module becomes a graph.

        Raises as GPTQ does, and InputError where there are fewer than `HELD_BACK` examples.
        """
        graph = model.module if isinstance(model.module, fx.GraphModule) else capture(model)
        teacher = cast("fx.GraphModule", copied(graph))
        model.module = graph
        GPTQ().apply(model, self._start(decision), _first(batches, STARTED_FROM))
        schedule = self._schedule(decision)
        learned = [name for name in decision.layers if multiplies_alone(graph, name)]
        parts = _enough_parts(batches, schedule.batch_size)
        if schedule.block_steps:
            _learn_blocks(teacher, graph, parts, learned, schedule)
        if schedule.steps:
            _learn_together(teacher, graph, parts, learned, schedule)

    def _start(self, decision: Decision) -> Decision:
        settings = _settings.complete(decision, self.defaults)
        return Decision(GPTQ.name, decision.layers, self.stage, {k: settings[k] for k in GPTQ.defaults})

    def _schedule(self, decision: Decision) -> Schedule:
        settings = _settings.complete(decision, self.defaults)
        own = {key: value for key, value in settings.items() if key not in GPTQ.defaults}
        schedule = Schedule(**own)  # type: ignore[arg-type]
        if "input_drop" in decision.settings and not (schedule.block_steps or schedule.activation_bits):
            raise ValueError("input_drop has nothing to drop: set block_steps=100 or activation_bits=4 too")
        return schedule


def _first(batches: Sequence[Mapping[str, Tensor]], count: int) -> list[Mapping[str, Tensor]]:
    """The first examples, in the batches they are in."""
    found: list[Mapping[str, Tensor]] = []
    for batch in batches:
        found.append({name: value[:count] for name, value in batch.items()})
        count -= len(next(iter(found[-1].values())))
        if count <= 0:
            break
    return found


def _enough_parts(batches: Sequence[Mapping[str, Tensor]], size: int) -> list[Mapping[str, Tensor]]:
    """The examples in parts of at most ``size``, smaller where too few would be there to keep one back."""
    count = sum(len(next(iter(batch.values()))) for batch in batches)
    if count < HELD_BACK:
        raise InputError(
            f"learned_rounding needs {HELD_BACK} calibration examples or more, of which one in {HELD_BACK} "
            f"chooses what is kept; there are {count}: give more, or use gptq"
        )
    least = min(size, count // HELD_BACK)
    return [part for batch in batches for part in _parts(batch, least)]


def _parts(batch: Mapping[str, Tensor], size: int) -> Iterator[Mapping[str, Tensor]]:
    """The batch in parts of at most ``size`` examples."""
    count = len(next(iter(batch.values())))
    for start in range(0, count, size):
        yield {name: value[start : start + size] for name, value in batch.items()}


def _learn_blocks(
    teacher: fx.GraphModule,
    graph: fx.GraphModule,
    batches: Sequence[Mapping[str, Tensor]],
    layers: Sequence[str],
    schedule: Schedule,
) -> None:
    wanted, learning = blocks(teacher, layers), blocks(graph, layers)
    kept = [kept_tokens(batch) for batch in batches]
    float_values, values = Stream(teacher, batches), Stream(graph, batches)
    for index, (goal, block) in enumerate(zip(wanted, learning, strict=True)):
        float_reads = [float_values.inputs(goal, i) for i in range(len(batches))]
        reads = [values.inputs(block, i) for i in range(len(batches))]
        float_values.advance(goal, wanted[index + 1 :])
        examples = Examples(reads, float_reads, float_values.latest, kept)
        _learn(graph, block, examples, schedule, schedule.block_steps, _relative_error)
        values.advance(block, learning[index + 1 :])


def _learn_together(
    teacher: fx.GraphModule,
    graph: fx.GraphModule,
    batches: Sequence[Mapping[str, Tensor]],
    layers: Sequence[str],
    schedule: Schedule,
) -> None:
    block = whole(graph, layers)
    stream = Stream(graph, batches)
    reads = [stream.inputs(block, i) for i in range(len(batches))]
    targets = _Answers(extracted(teacher, whole(teacher, layers)), reads)
    examples = Examples(reads, reads, targets, [kept_tokens(batch) for batch in batches])
    loss = _divergence if schedule.outputs == "logits" else _relative_error
    _learn(graph, block, examples, schedule, schedule.steps, loss)


@final
class _Answers(Sequence[tuple[Any, ...]]):
    """What a module puts out, computed when it is asked for: logits of all examples may not fit in memory."""

    def __init__(self, run: nn.Module, reads: Sequence[tuple[Any, ...]]) -> None:
        self._run, self._reads = run, reads

    def __len__(self) -> int:
        return len(self._reads)

    @torch.no_grad()
    def __getitem__(self, index: Any) -> Any:
        return self._run(*self._reads[index])


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """What a block reads, what it reads in the float model, and what it should put out; batch by batch.

    Of texts, ``kept`` tells the tokens that count; None where all do.
    """

    reads: Sequence[tuple[Any, ...]]
    float_reads: Sequence[tuple[Any, ...]]
    targets: Sequence[tuple[Any, ...]]
    kept: Sequence[Tensor | None]


# of an output, what it should be, with gradients to the first
Loss = Callable[[Tensor, Tensor], Tensor]


def _learn(
    graph: fx.GraphModule, block: Block, examples: Examples, schedule: Schedule, steps: int, loss: Loss
) -> None:
    learning: list[tuple[EncodedLayer, LearnedCodes]] = []
    for name in block.layers:
        layer = graph.get_submodule(name)
        if isinstance(layer, EncodedLayer) and isinstance(stored := layer.encoding(), AffineWeight):
            learning.append((layer, LearnedCodes(stored)))
    kept = [(layer.encoders, layer.layer._parameters.get("bias")) for layer, _ in learning]
    for (layer, encoder), (encoders, bias) in zip(learning, kept, strict=True):
        layer.encoders = (*encoders[:-1], encoder)
        if bias is not None:
            layer.layer.bias = nn.Parameter(bias.detach().clone())
    rounds = _rounding_inputs([layer for layer, _ in learning], schedule)
    run = _Run(extracted(graph, block), examples, loss, rounds)
    improved = _train(run, learning, schedule, steps)
    for (layer, encoder), (encoders, bias) in zip(learning, kept, strict=True):
        layer.encoders = encoders
        if isinstance(layer.input_quantizer, RoundedInputs):
            layer.input_quantizer = None
        if improved:
            _keep(layer, encoder)
        elif bias is not None:
            layer.layer.bias = bias


def _rounding_inputs(layers: Sequence[EncodedLayer], schedule: Schedule) -> Sequence[RoundedInputs]:
    """Round what layers read while they learn, in place; where that is rounded already, it stays so."""
    found = []
    for index, layer in enumerate(layers):
        if schedule.activation_bits and layer.input_quantizer is None:
            found.append(RoundedInputs(schedule.activation_bits, schedule.input_drop, schedule.seed + index))
            layer.input_quantizer = found[-1]
    return found


def _keep(layer: EncodedLayer, learned: LearnedCodes) -> None:
    stored = learned(layer.layer.weight)
    layer.layer.weight = nn.Parameter(stored.decode().to(layer.layer.weight.dtype))
    layer.encoders = layer.encoders[:-1]
    layer.add_encoder(
        AffineEncoder(stored.form, scale=stored.scale, zero_point=stored.zero_point, mask=stored.mask)
    )


@final
class _Run:
    """A block on its examples."""

    def __init__(
        self, module: nn.Module, examples: Examples, loss: Loss, rounds: Sequence[RoundedInputs] = ()
    ) -> None:
        self._module, self._examples, self._loss, self._rounds = module, examples, loss, rounds
        every = list(range(len(examples.reads)))
        interval = max(HELD_BACK, -(-len(every) // HELD_BACK_MOST))
        self._held = every[interval - 1 :: interval]
        self._seen = [i for i in every if i not in self._held]

    def loss(self, drop: float, generator: torch.Generator) -> Tensor:
        """Of a random batch, with gradients."""
        chosen = self._seen[int(torch.randint(len(self._seen), (), generator=generator))]
        for rounding in self._rounds:
            rounding.learns = True
        return self._of(_mixed(self._examples, chosen, drop, generator), chosen)

    @torch.no_grad()
    def held_loss(self) -> float:
        """On what is kept back."""
        for rounding in self._rounds:
            rounding.learns = False
        return float(torch.stack([self._of(self._examples.reads[i], i) for i in self._held]).mean())

    def _of(self, reads: tuple[Any, ...], batch: int) -> Tensor:
        total, kept = torch.zeros(()), self._examples.kept[batch]
        for output, target in zip(self._module(*reads), self._examples.targets[batch], strict=True):
            if not isinstance(target, Tensor) or not target.is_floating_point():
                continue
            if kept is not None and target.dim() == 3 and target.shape[:2] == kept.shape:
                output, target = output[kept], target[kept]
            total = total + self._loss(output, target)
        return total


def _train(
    run: _Run, learning: Sequence[tuple[EncodedLayer, LearnedCodes]], schedule: Schedule, steps: int
) -> bool:
    """Learn, in place; whether the state left behind is better than the first."""
    optimizer = _optimizer(learning, schedule)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(schedule.seed)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    first = best = run.held_loss()
    state = [p.detach().clone() for p in parameters]
    interval = max(1, steps // CHECKS)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        run.loss(schedule.input_drop, generator).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        slower.step()
        if step % interval == 0 and (loss := run.held_loss()) < best:
            best, state = loss, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, state, strict=True):
            parameter.copy_(value)
    return best < first


def _optimizer(
    learning: Sequence[tuple[EncodedLayer, LearnedCodes]], schedule: Schedule
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


def _relative_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error over the mean square of what is wanted."""
    size = target.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return (output - target).square().mean() / size


def _divergence(output: Tensor, target: Tensor) -> Tensor:
    """Mean KL divergence of the probabilities along the last axis."""
    return divergence(output, target).mean()
