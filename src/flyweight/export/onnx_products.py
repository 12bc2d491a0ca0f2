"""In which way the file multiplies by blocks of codes, chosen for each layer by measurement.

There are three: codes times activations rounded to 8 bits block by block (MatMulNBits at accuracy level 4),
codes times float activations (level 0), and floats that are decoded once, when the file is loaded. Level 4 is
taken where rounding changes the layer's output little enough, unless another way is clearly faster on this
machine; all three store the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flyweight.export.onnx_block_ops import EXACT_LEVEL, INTEGER_LEVEL, LEAST_WIDTH, in_integers
from flyweight.export.onnx_blocks import Blocks
from flyweight.export.onnx_contrib import DOMAIN
from flyweight.export.onnx_ops import OPSET
from flyweight.measure.agreement import relative_error
from flyweight.model import Model
from flyweight.tensors.encoded import EncodedLayer, encoded_layers, input_of

Way = Literal["integers", "blocks", "floats"]
LEVELS: Mapping[Way, int] = {"integers": INTEGER_LEVEL, "blocks": EXACT_LEVEL}
# Of a layer's output, root mean square. Rounding takes 0.005 of normally distributed inputs; weights of 4
# bits are off by 0.1, of 8 bits by 0.007.
LARGEST_ERROR = 0.02
# A way later in the order must be this much faster: it keeps more in memory, and clocks differ by run.
CLEARLY_FASTER = 1.25
ROUNDS = 7
LEAST_SECONDS = 0.002  # of one timing
SMALL_WEIGHTS = 1 << 14  # below, calling an operator takes longer than its work
MOST_TOKENS = 256


@final
@dataclass(frozen=True)
class Product:
    """One multiplication: ``rows`` outputs of ``columns`` inputs, for so many tokens at once."""

    rows: int
    columns: int
    width: int
    block_size: int
    has_zero_points: bool
    tokens: int


def way_of(
    weight: Float[Tensor, "rows columns"],
    blocks: Blocks,
    x: Tensor | None,
    *,
    has_zero_points: bool,
    packed: bool,
) -> Way:
    """How a layer multiplies.

    Args:
        weight: Decoded.
        blocks: Its layout.
        x: What the layer reads, (examples, ..., columns); None where no example reaches it, and nothing may
            be rounded.
        has_zero_points: Whether the weight is asymmetric.
        packed: Codes are stored in blocks whatever is faster, as an embedding reads the same.
    """
    # Every width but 4 takes 10 to 50 times as long on floats (ONNX Runtime 1.31).
    exact: Way = "blocks" if max(blocks.width, LEAST_WIDTH) == LEAST_WIDTH else "floats"
    if x is None:
        return exact
    tokens = x.reshape(-1, x.shape[-1])
    within = is_close(tokens @ weight.T, in_integers(tokens, blocks.block_size) @ weight.T)
    ways: list[Way] = ["integers"] if within else []
    ways += ["blocks"] if exact == "blocks" else []
    ways += [] if packed and ways else ["floats"]
    if len(ways) == 1 or weight.numel() < SMALL_WEIGHTS:
        return ways[0]
    rows, columns = weight.shape
    product = Product(
        rows,
        columns,
        max(blocks.width, LEAST_WIDTH),
        blocks.block_size,
        has_zero_points,
        min(len(tokens) // len(x), MOST_TOKENS),
    )
    return fastest(product, tuple(ways))


def is_close(exact: Tensor, rounded: Tensor) -> bool:
    """Whether a layer's output may be computed in the second way instead of the first."""
    return relative_error([exact], [rounded]) <= LARGEST_ERROR


@cache
def fastest(product: Product, ways: tuple[Way, ...]) -> Way:
    """The first way, unless a later one is clearly faster; timed once in a process for each shape."""
    seconds = timed(product, ways)
    best = ways[0]
    for way in ways[1:]:
        if seconds[way] * CLEARLY_FASTER < seconds[best]:
            best = way
    return best


def timed(product: Product, ways: Sequence[Way]) -> Mapping[Way, float]:
    """Median processor time of one call each, in turn, in one thread."""
    sessions = {way: _session(_graph(product, way)) for way in ways}
    x = np.random.default_rng(0).standard_normal((product.tokens, product.columns), np.float32)
    calls = {way: _calls(session, x) for way, session in sessions.items()}
    found: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, session in sessions.items():
            found[way].append(_seconds(session, x, calls[way]))
    return {way: median(values) for way, values in found.items()}


def _calls(session: Any, x: np.ndarray) -> int:
    _seconds(session, x, 1)
    return max(1, round(LEAST_SECONDS / max(_seconds(session, x, 1), 1e-6)))


def _seconds(session: Any, x: np.ndarray, calls: int) -> float:
    # of this thread, which computes alone: what else runs on the machine does not count
    start = time.thread_time()
    for _ in range(calls):
        session.run(None, {"x": x})
    return (time.thread_time() - start) / calls


def _session(model: bytes) -> Any:
    from flyweight.run.onnxruntime import onnxruntime_module

    onnxruntime = onnxruntime_module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _graph(product: Product, way: Way) -> bytes:
    """One layer of that shape, with weights at random."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    rows, columns, size = product.rows, product.columns, product.block_size
    blocks = -(-columns // size)
    if way == "floats":
        weights = [numpy_helper.from_array(draw.standard_normal((columns, rows), np.float32), "w")]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        zeros = (rows, -(-blocks * product.width // 8))
        shapes = {"w": (rows, blocks, size * product.width // 8), "z": zeros}
        codes = {name: draw.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
        arrays = {"w": codes["w"], "s": np.ones((rows, blocks), np.float32)}
        arrays |= {"z": codes["z"]} if product.has_zero_points else {}
        weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        node = helper.make_node(
            "MatMulNBits",
            ["x", *arrays],
            ["y"],
            domain=DOMAIN,
            K=columns,
            N=rows,
            bits=product.width,
            block_size=size,
            accuracy_level=LEVELS[way],
        )
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])
        for name, width in (("x", columns), ("y", rows))
    ]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


@torch.no_grad()
def layer_inputs(model: Model) -> dict[str, Tensor]:
    """What each encoded layer multiplies on typical inputs, its smoothing factors included, by name.

    Layers that these do not reach are left out, and those that read zeros, on which all ways look alike.
    """
    found: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: EncodedLayer, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            x = input_of(args, kwargs)
            if x.is_floating_point() and bool(x.any()):
                found.setdefault(name, x if module.input_factors is None else x * module.input_factors)

        return hook

    handles = [
        layer.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, layer in encoded_layers(model.module)
    ]
    try:
        model.outputs(model.typical_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
