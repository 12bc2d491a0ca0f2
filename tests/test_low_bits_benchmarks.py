from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import minilm_w4, rival_autoround, rival_k_quant, stories
from benchmarks.claims import OURS
from benchmarks.low_bits import NEAREST, Subject
from benchmarks.rounded import with_weights
from flyweight.model import Model


def model() -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return Model("net", net, {"input": torch.zeros(1, 4)})


def subject(**calibration: np.ndarray) -> Subject:
    return Subject(
        model=model(), layers=("0",), calibration=calibration, folder=Path(), auto_class="", prefix=""
    )


def test_weights_of_a_rival_are_put_into_a_copy():
    original = model()
    before = copy.deepcopy(original.module.state_dict())
    made = with_weights(original, {"0.weight": torch.ones(4, 4)})
    assert torch.equal(made.module.get_parameter("0.weight"), torch.ones(4, 4))
    assert torch.equal(made.module.get_parameter("2.weight"), before["2.weight"])
    assert torch.equal(original.module.get_parameter("0.weight"), before["0.weight"])


def test_a_weight_that_the_model_does_not_have_is_no_answer():
    with pytest.raises(KeyError, match="lm_head"):
        with_weights(model(), {"lm_head.weight": torch.ones(4, 4)})


def test_batches_of_short_texts_are_cut_where_the_longest_ends():
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    first, second = subject(input_ids=mask * 7, attention_mask=mask).batches(2)
    assert (first["input_ids"].shape, second["input_ids"].shape) == ((2, 3), (1, 4))
    assert first["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_feed_forward_parts_widened_for_autoround_compute_the_same():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    net, ids = LlamaForCausalLM(config).eval(), torch.arange(6)[None]
    wide = rival_autoround._widened(net)
    assert wide.model.layers[0].mlp.down_proj.weight.shape == (8, 32)
    assert torch.allclose(wide(ids).logits, net(ids).logits, atol=1e-6)


def test_a_layer_that_autoround_left_out_is_found():
    weight = torch.arange(64.0).reshape(2, 32)
    rival_autoround._check_levels("layer", weight % 16, bits=4, group_size=32)
    with pytest.raises(RuntimeError, match=r"layer with 17 values"):
        rival_autoround._check_levels("layer", weight % 17, bits=4, group_size=32)


def test_k_quant_is_told_rows_in_groups():
    weight = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    rounded = rival_k_quant._rounded(weight, 4, 32)
    assert rounded.shape == weight.shape
    assert max(len(np.unique(group)) for group in rounded.reshape(-1, 32)) <= 16
    assert np.abs(rounded - weight).max() < 0.5


def test_likelihood_is_the_mean_over_the_tokens_that_are_predicted():
    logits = np.zeros((2, 3, 4), np.float32)
    logits[0, :2, 1] = 100.0
    found = stories.likelihood(logits, np.array([[0, 1, 1], [0, 1, 1]]))
    np.testing.assert_allclose(found, [0.0, -np.log(4)], atol=1e-6)


def test_the_bar_of_four_bits_is_the_best_rival_or_a_third_of_rounding_to_nearest():
    class Judge:
        def cosine(self, made: Model) -> tuple[float, float]:
            return float(made.name), 1.0

    def candidates(nearest: str, rival: str) -> dict[str, Model]:
        named = {NEAREST: nearest, "a rival": rival, OURS: "0.995"}
        return {k: Model(v, nn.Identity(), {"input": torch.zeros(1, 1)}) for k, v in named.items()}

    bars = []
    for nearest, rival in (("0.97", "0.98"), ("0.97", "0.996")):
        check, _ = minilm_w4._checks("W4", Judge(), candidates(nearest, rival), None)
        bars.append(check.bar)
    assert bars == pytest.approx([0.01, 0.004])


def test_the_nearest_sentence_is_another_one():
    embeddings = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    assert minilm_w4._nearest(embeddings).tolist() == [1, 0, 1]
