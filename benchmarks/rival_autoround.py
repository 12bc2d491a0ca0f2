"""Weights rounded by AutoRound, in an environment of its own: ``python FILE job arrays result``.

The job names a Hugging Face ``model`` folder, the ``auto_class`` of transformers that opens it, ``layers``
(names of weights in that model), a list of ``bits``, a ``group_size``, ``iters`` and a folder ``out``; the
arrays are what the model reads, all of one length. The result holds ``files`` (bits to the rounded weights,
safetensors, decoded), ``seconds`` and ``versions``.

AutoRound leaves out, without a word, linear layers whose sizes are no multiples of 32. So the middle of
Llama's feed-forward parts is widened with zeros, which computes the same, and cut back afterwards.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers  # noqa: TID253  # this file is the rival
from safetensors.torch import save_file
from torch import Tensor

MULTIPLE = 32
BATCH = 8  # AutoRound's own


def main(job_file: str, arrays_file: str, result_file: str) -> None:
    """Write the rounded weights for every width, and the result file."""
    job = json.loads(Path(job_file).read_text())
    with np.load(arrays_file, allow_pickle=False) as stored:
        arrays = {name: torch.from_numpy(value) for name, value in stored.items()}
    opened = getattr(transformers, job["auto_class"]).from_pretrained(
        job["model"], attn_implementation="eager", dtype=torch.float32
    )
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    files, seconds = {}, {}
    for bits in job["bits"]:
        start = time.perf_counter()
        rounded = _rounded(copy.deepcopy(opened).eval(), arrays, bits, job)
        seconds[bits] = time.perf_counter() - start
        files[bits] = str(out / f"autoround-{bits}.safetensors")
        save_file(rounded, files[bits])
    versions = {name: version(name) for name in ("auto-round", "transformers")}
    Path(result_file).write_text(json.dumps({"files": files, "seconds": seconds, "versions": versions}))


def _rounded(
    model: Any, arrays: Mapping[str, Tensor], bits: int, job: Mapping[str, Any]
) -> dict[str, Tensor]:
    from auto_round import AutoRound  # type: ignore[import-not-found]

    before = {name: model.get_parameter(name).detach().clone() for name in job["layers"]}
    any_input = next(iter(arrays.values()))
    tool = AutoRound(
        _widened(model),
        tokenizer=_Tokenizer(),
        bits=bits,
        group_size=job["group_size"],
        sym=False,
        iters=job["iters"],
        seqlen=any_input.shape[1],
        nsamples=len(any_input),
        batch_size=BATCH,
        dataset=[{name: value[i : i + BATCH] for name, value in arrays.items()} for i in _starts(arrays)],
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
    )
    quantized, _ = tool.quantize()
    rounded = {}
    for name, original in before.items():
        weight = quantized.get_parameter(name).detach().float()
        _check_levels(name, weight, bits, job["group_size"])
        rounded[name] = weight[tuple(slice(size) for size in original.shape)].contiguous().clone()
    return rounded


class _Tokenizer:
    """AutoRound insists on one, and asks it for no more than this when it is given token ids."""

    pad_token_id = 0
    pad_token = "[PAD]"

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Write nothing."""


def _starts(arrays: Mapping[str, Tensor]) -> range:
    return range(0, len(next(iter(arrays.values()))), BATCH)


def _widened(model: Any) -> Any:
    """The model, with the middle of its feed-forward parts widened to a multiple of 32 by zeros."""
    middle = model.config.intermediate_size
    missing = -middle % MULTIPLE
    if not missing:
        return model
    config = copy.deepcopy(model.config)
    config.intermediate_size = middle + missing
    wide = type(model)(config).float().eval()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            parameter.zero_()
            parameter[tuple(slice(size) for size in own[name].shape)] = own[name]
    return wide


def _check_levels(name: str, weight: Tensor, bits: int, group_size: int) -> None:
    """Raise RuntimeError where a group of the weight has more values than codes: it was not quantized."""
    ordered = weight.reshape(-1, group_size).sort(1).values
    levels = 1 + (ordered.diff(dim=1) > 0).sum(1)
    if int(levels.max()) > 2**bits:
        raise RuntimeError(f"AutoRound left {name} with {int(levels.max())} values in a group")


if __name__ == "__main__":
    main(*sys.argv[1:])
