"""Weights rounded by rivals, in an environment of their own: ``python FILE job arrays result``.

The job names a ``program`` (torch.export), the ``layers`` (names of weights), ``method``: ``gptq``
(llm-compressor's core), ``hqq`` or ``nearest``, a list of ``bits``, a ``group_size`` (0: by output channel)
and a folder ``out``. Layers are rounded one after the other, each on what it reads once those before it are.
Of padded texts only tokens count that an array ``attention_mask`` keeps.
The result holds ``files`` (bits to the rounded weights, safetensors, decoded), ``seconds`` and ``versions``.

llm-compressor quantizes no convolutions: its core is given the convolution as a matrix, with the second
moments of its unfolded inputs. Its scales are searched here for least squared error of the weight, as no
range method of its own does that for a matrix alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

BATCH = 32
ATEN = torch.ops.aten
DAMPING = 0.01
RATIOS = [1 - 0.02 * step for step in range(36)]
PACKAGES = {"gptq": "llmcompressor", "hqq": "hqq", "nearest": "torch"}

# (weight as a matrix, second moment of its inputs or None, bits, group size) to the decoded matrix
Method = Callable[[Tensor, Tensor, int, int], Tensor]


def main(job_file: str, arrays_file: str, result_file: str) -> None:
    """Write the rounded weights for every width, and the result file."""
    job = json.loads(Path(job_file).read_text())
    with np.load(arrays_file, allow_pickle=False) as stored:
        arrays = {name: torch.from_numpy(value) for name, value in stored.items()}
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    method = {"gptq": _gptq, "hqq": _hqq, "nearest": _nearest}[job["method"]]
    files, seconds = {}, {}
    for bits in job["bits"]:
        graph = torch.export.load(job["program"]).module()
        start = time.perf_counter()
        with torch.no_grad():
            rounded = _walk(graph, arrays, set(job["layers"]), method, bits, job["group_size"])
        seconds[bits] = time.perf_counter() - start
        files[bits] = str(out / f"{job['method']}-{bits}.safetensors")
        save_file(rounded, files[bits])
    package = PACKAGES[job["method"]]
    answer = {"files": files, "seconds": seconds, "versions": {package: version(package)}}
    Path(result_file).write_text(json.dumps(answer))


def _walk(
    graph: Any, arrays: Mapping[str, Tensor], layers: set[str], method: Method, bits: int, group_size: int
) -> dict[str, Tensor]:
    """The graph run once, node by node over all batches, rounding each weight as it is reached."""
    examples = len(next(iter(arrays.values())))
    batches = [{k: v[i : i + BATCH] for k, v in arrays.items()} for i in range(0, examples, BATCH)]
    values: dict[Any, list[Any]] = {}
    users = {node: len(node.users) for node in graph.graph.nodes}
    rounded: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        weight = _weight_of(node, layers)
        if weight is not None:
            reads = _kept(values[node.args[0]], [batch.get("attention_mask") for batch in batches])
            found = _rounded(graph.get_parameter(weight), node, reads, method, bits, group_size)
            rounded[weight] = found.clone()
            values[node.all_input_nodes[1]] = [found] * len(batches)
        values[node] = [_computed(graph, node, values, i, batch) for i, batch in enumerate(batches)]
        for source in node.all_input_nodes:
            users[source] -= 1
            if not users[source]:
                values.pop(source, None)
    return rounded


def _weight_of(node: Any, layers: set[str]) -> str | None:
    if node.target not in (ATEN.linear.default, ATEN.conv2d.default):
        return None
    weight = node.args[1]
    return weight.target if weight.op == "get_attr" and weight.target in layers else None


def _computed(graph: Any, node: Any, values: Mapping[Any, Sequence[Any]], index: int, batch: Any) -> Any:
    if node.op == "placeholder":
        return batch[node.target]
    if node.op == "get_attr":
        path, _, name = node.target.rpartition(".")
        return getattr(graph.get_submodule(path), name)
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[n][index])
    if node.op == "call_module":
        return graph.get_submodule(node.target)(*args, **kwargs)
    return node.target(*args, **kwargs)


def _kept(reads: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[Tensor]:
    """Without the tokens that fill short texts up."""
    pairs = zip(reads, masks, strict=True)
    return [x if mask is None or x.dim() != 3 else x[mask.bool()] for x, mask in pairs]


def _rounded(
    weight: Tensor, node: Any, reads: Sequence[Tensor], method: Method, bits: int, group: int
) -> Tensor:
    matrix = weight.detach().reshape(weight.shape[0], -1)
    moment = torch.zeros(matrix.shape[1], matrix.shape[1])
    for read in reads:
        rows = read.reshape(-1, read.shape[-1]) if weight.dim() == 2 else _unfolded(read, weight, node)
        moment += rows.T @ rows
    size = group or matrix.shape[1]
    missing = -matrix.shape[1] % size
    padded = functional.pad(matrix, (0, missing))
    found = method(padded, functional.pad(moment, (0, missing, 0, missing)), bits, size)
    return found[:, : matrix.shape[1]].reshape(weight.shape).contiguous()


def _unfolded(read: Tensor, weight: Tensor, node: Any) -> Tensor:
    """(positions, columns) of an ungrouped convolution's input."""
    given = {a.name: v for a, v in zip(node.target._schema.arguments, node.args, strict=False)}
    columns = functional.unfold(
        read, tuple(weight.shape[2:]), padding=given.get("padding", 0), stride=given.get("stride", 1)
    )
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def _grids(matrix: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor]:
    """(rows, groups) scale and zero point, signed codes, of least squared error."""
    groups = matrix.reshape(len(matrix), -1, size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for ratio in RATIOS:
        scale = ((high - low) * ratio / (2**bits - 1)).clamp_min(1e-12)
        zero = (lowest - low * ratio / scale).round().clamp(lowest, highest)
        codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(lowest, highest)
        error = ((codes - zero[..., None]) * scale[..., None] - groups).square().sum(-1)
        takes = error < least
        least = torch.where(takes, error, least)
        best_scale, best_zero = torch.where(takes, scale, best_scale), torch.where(takes, zero, best_zero)
    return best_scale, best_zero


def _nearest(matrix: Tensor, moment: Tensor, bits: int, size: int) -> Tensor:
    """Asymmetric min-max ranges, nearest codes."""
    groups = matrix.reshape(len(matrix), -1, size)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    zero = (-low / scale).round()
    codes = ((groups / scale).round() + zero).clamp(0, 2**bits - 1)
    decoded: Tensor = ((codes - zero) * scale).reshape(matrix.shape)
    return decoded


def _gptq(matrix: Tensor, moment: Tensor, bits: int, size: int) -> Tensor:
    from compressed_tensors.quantization import QuantizationArgs  # type: ignore[import-not-found]
    from llmcompressor.modifiers.gptq.gptq_quantize import (  # type: ignore[import-not-found]
        quantize_weight,
    )

    scale, zero = _grids(matrix, bits, size)
    whole = size == matrix.shape[1]
    args = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=False,
        strategy="channel" if whole else "group",
        group_size=None if whole else size,
        actorder="static",
    )
    found, _, fell_back = quantize_weight(
        matrix[None].clone(), moment[None].clone(), scale[None], zero[None].to(torch.int8), None, args,
        percdamp=DAMPING,
    )  # fmt: skip
    if bool(fell_back.any()):
        print("gptq fell back to rounding to nearest", file=sys.stderr)
    decoded: Tensor = found[0]
    return decoded


def _hqq(matrix: Tensor, moment: Tensor, bits: int, size: int) -> Tensor:
    from hqq.core.quantize import Quantizer  # type: ignore[import-not-found]

    codes, meta = Quantizer.quantize(
        matrix, nbits=bits, group_size=size, axis=1, device="cpu", compute_dtype=torch.float32
    )
    decoded: Tensor = Quantizer.dequantize(codes, meta)
    return decoded.float().reshape(matrix.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
