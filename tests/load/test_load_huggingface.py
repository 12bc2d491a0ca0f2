"""Hugging Face folders, made here with random weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from flyweight.data.examples import Examples, Splits
from flyweight.errors import InputError, UnsupportedError
from flyweight.load.huggingface import is_hub_id, load_folder
from flyweight.load.open import EXAMPLE_TOKENS, open_model
from flyweight.pipeline import export
from flyweight.run.examples import open_examples
from flyweight.run.predict import predict
from flyweight.settings import Settings
from flyweight.tasks.classification import Classification
from flyweight.tasks.similarity import Similarity

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "song")
SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def write_tokenizer(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32, "pad_token": "[PAD]"}))


def write_model(folder: Path, name: str, **config: object) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.BertConfig(**SMALL, **config))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("encoder"), "BertModel")


@pytest.fixture
def encoder(encoder_folder, tmp_path) -> Path:
    return shutil.copytree(encoder_folder, tmp_path / "encoder")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    return write_model(tmp_path_factory.mktemp("classifier"), "BertForSequenceClassification", **names)


def pooled(folder: Path, mode: str, *, normalize: bool) -> Path:
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {
        f"pooling_mode_{name}": name == mode
        for name in ("mean_tokens", "cls_token", "max_tokens", "lasttoken")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def inputs() -> dict[str, torch.Tensor]:
    """Two texts, the second padded."""
    return {
        "input_ids": torch.tensor([[1, 4, 6, 2], [1, 5, 2, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }


def states(folder: Path) -> torch.Tensor:
    return transformers.AutoModel.from_pretrained(folder).eval()(**inputs()).last_hidden_state


@torch.no_grad()
def test_mean_pooling_leaves_padding_out(encoder):
    embeddings = load_folder(encoder).module(**inputs())
    expected = torch.stack([states(encoder)[0].mean(0), states(encoder)[1, :3].mean(0)])
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_cls_pooling_takes_the_first_state(encoder):
    embeddings = load_folder(pooled(encoder, "cls_token", normalize=False)).module(**inputs())
    torch.testing.assert_close(embeddings, states(encoder)[:, 0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_max_pooling_leaves_padding_out(encoder):
    embeddings = load_folder(pooled(encoder, "max_tokens", normalize=False)).module(**inputs())
    torch.testing.assert_close(embeddings[1], states(encoder)[1, :3].amax(0), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_normalized_embeddings_have_length_one(encoder):
    embeddings = load_folder(pooled(encoder, "mean_tokens", normalize=True)).module(**inputs())
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_the_pooler_that_is_not_used_is_left_out(encoder):
    assert not any("pooler" in name for name, _ in load_folder(encoder).module.named_parameters())


def test_the_length_is_that_of_sentence_transformers_first(encoder):
    assert load_folder(encoder).preprocessing["max_length"] == 32
    (encoder / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}')
    assert load_folder(encoder).preprocessing["max_length"] == 24


def texts(*columns: str) -> Splits:
    given = {name: ["good film", "bad song", "good good song", "film"] for name in columns}
    part = Examples(given, np.array([1, 0, 1, 1]), ("negative", "positive"))
    return Splits(part, part, part)


def settings(folder: Path, task: str) -> Settings:
    return Settings(model=str(folder), data="data", out="out", task=task)


def test_an_encoder_opens_for_similarity(encoder):
    opened = open_model(settings(encoder, "similarity"), texts("text"), Similarity("neighbours"))
    assert {n: tuple(t.shape) for n, t in opened.model.example_inputs.items()} == {
        "input_ids": (1, EXAMPLE_TOKENS),
        "attention_mask": (1, EXAMPLE_TOKENS),
    }
    assert opened.model.dynamic_axes["input_ids"] == opened.model.dynamic_axes["attention_mask"]
    assert opened.model.output_shapes() == [(1, 16)]


def test_a_classifier_gives_logits_in_its_own_order_of_classes(classifier):
    backwards = Examples({"text": ["good film", "bad song"]}, np.array([0, 1]), ("positive", "negative"))
    opened = open_model(
        settings(classifier, "classification"), Splits(backwards, backwards, backwards), Classification()
    )
    assert opened.splits.evaluation.targets.tolist() == [1, 0]
    assert opened.splits.evaluation.classes == ("negative", "positive")
    assert opened.model.output_shapes() == [(1, 2)]


def test_pairs_of_texts_are_told_apart(classifier):
    opened = open_model(settings(classifier, "classification"), texts("a", "b"), Classification())
    assert sorted(opened.model.example_inputs) == ["attention_mask", "input_ids", "token_type_ids"]
    assert opened.model.example_inputs["token_type_ids"].any()


def test_an_artifact_made_from_pairs_answers_the_file_it_was_made_with(encoder, tmp_path):
    pairs = [("good film", "bad film", "1.5"), ("good song", "good film", "4.0"), ("bad song", "bad", "3.5")]
    (tmp_path / "pairs.csv").write_text("".join(",".join(pair) + "\n" for pair in pairs * 2))
    made = settings(encoder, "similarity")
    made = replace(made, data=str(tmp_path / "pairs.csv"), out=str(tmp_path / "out"))
    export(made)
    answers = predict(made.out, open_examples(made.out, tmp_path / "pairs.csv"))
    assert list(answers) == ["similarity"]
    assert len(answers["similarity"]) == 6
    assert max(answers["similarity"]) <= 1.0 + 1e-6


def test_an_encoder_has_no_classes(encoder):
    with pytest.raises(InputError, match="fits --task similarity"):
        open_model(settings(encoder, "classification"), texts("text"), Classification())


def write_image_classifier(folder: Path, **preprocessing: object) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    declared = {"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2, "do_rescale": True}
    declared |= {
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(declared | preprocessing))
    return folder


def test_an_image_classifier_brings_its_preprocessing(tmp_path):
    folder = write_image_classifier(tmp_path / "vit")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 12, 3), dtype=np.uint8)
    part = Examples({"image": pixels}, np.array([0, 1, 0, 1]), ("cat", "dog"))
    opened = open_model(settings(folder, "classification"), Splits(part, part, part), Classification())
    assert opened.model.example_inputs["pixel_values"].shape == (1, 3, 8, 8)
    assert opened.model.example_inputs["pixel_values"].abs().max() <= 1


def test_texts_for_an_image_classifier_are_one_sentence(tmp_path):
    folder = write_image_classifier(tmp_path / "vit")
    with pytest.raises(InputError, match="vit takes images, and the data are texts"):
        open_model(settings(folder, "classification"), texts("text"), Classification())


def test_images_for_a_text_classifier_are_one_sentence(classifier):
    part = Examples({"image": [Path("a.png"), Path("b.png")]}, np.array([0, 1]), ("negative", "positive"))
    with pytest.raises(InputError, match="takes texts, and the data are images"):
        open_model(settings(classifier, "classification"), Splits(part, part, part), Classification())


class _NoModels(BaseHTTPRequestHandler):
    """Answers as the hub does for a model that it does not have."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def told_by_fetch(home: Path, **environment: str) -> str:
    code = (
        "from flyweight.load.huggingface import fetch\n"
        "try: fetch('someone/model')\n"
        "except Exception as error: print(error)"
    )
    variables = {**os.environ, "HF_HOME": str(home), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_hub_without_the_model_is_told_from_a_hub_that_cannot_be_reached(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _NoModels) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        missing = told_by_fetch(tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
        server.shutdown()
        thread.join()
    unreachable = told_by_fetch(tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    offline = told_by_fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert "the Hugging Face hub has no model someone/model" in missing
    for told in (unreachable, offline):
        assert "the Hugging Face hub cannot be reached" in told
        assert "no model" not in told


def test_a_small_convnext_size_is_cropped_from_a_larger_one(tmp_path):
    convnext = {"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessor"}
    preprocessing = load_folder(write_image_classifier(tmp_path / "vit", **convnext)).preprocessing
    assert (preprocessing["resize"], preprocessing["crop"]) == (256, 224)


def test_unknown_steps_on_images_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="sets do_pad"):
        load_folder(write_image_classifier(tmp_path / "vit", do_pad=True))


def change_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


def test_a_language_model_is_refused(encoder):
    change_config(encoder, architectures=["GPT2LMHeadModel"], model_type="gpt2")
    with pytest.raises(UnsupportedError, match="generates text"):
        load_folder(encoder)


def test_missing_weights_are_named(encoder):
    change_config(encoder, architectures=["BertForSequenceClassification"])
    with pytest.raises(InputError, match=r"weights are missing .*classifier\.bias"):
        load_folder(encoder)


def test_pickled_weights_are_not_read(encoder):
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pytorch_model\.bin, a pickle that is not read"):
        load_folder(encoder)


def test_a_truncated_file_is_refused(encoder):
    data = (encoder / "model.safetensors").read_bytes()
    (encoder / "model.safetensors").write_bytes(data[:500])
    with pytest.raises(InputError, match=r"cannot be loaded: .*header"):
        load_folder(encoder)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("config.json", "{", InputError, "is not JSON"),
        ("config.json", "[]", InputError, "must hold an object"),
        ("config.json", '{"model_type": "nope"}', InputError, "cannot be loaded: .*nope"),
        ("modules.json", "[{}]", InputError, "is malformed"),
        ("modules.json", '[{"type": "x.Dense", "path": "2_Dense"}]', UnsupportedError, "Dense module"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "query"}', UnsupportedError, "prompt"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', UnsupportedError, "lower case"),
    ],
)
def test_files_that_cannot_be_used_are_named(encoder, name, content, error, message):
    (encoder / name).write_text(content)
    with pytest.raises(error, match=message) as raised:
        load_folder(encoder)
    assert "\n" not in str(raised.value)


def test_other_poolings_are_refused(encoder):
    with pytest.raises(UnsupportedError, match="pools by pooling_mode_lasttoken"):
        load_folder(pooled(encoder, "lasttoken", normalize=False))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(encoder, name):
    (encoder / name).unlink()
    with pytest.raises(InputError, match=f"holds no {name}"):
        load_folder(encoder)


def test_only_what_is_no_path_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_hub_id("sentence-transformers/all-MiniLM-L6-v2")
    assert not is_hub_id("models/minilm")
    assert not is_hub_id("a/b/c")
