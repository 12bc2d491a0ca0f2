import json
import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.text_steps import Tokenize
from flyweight.data.tokenizer import MAX_DOCUMENT_BYTES, TOKENIZER_FILE, TokenizerFile
from flyweight.errors import ArtifactError, InputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "##ly", "a", "b", "c", "##a", "##b"]


def tokenizer_json(vocabulary: dict[str, int] | None = None) -> str:
    vocabulary = vocabulary or {word: index for index, word in enumerate(WORDS)}
    special = {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in ("[CLS]", "[SEP]")}
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]"))
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": {"max_length": 7, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": None,
            "added_tokens": [],
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
            | {"strip_accents": None, "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [cls, first, sep],
                "pair": [cls, first, sep, *second],
                "special_tokens": special,
            },
            "decoder": None,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
            | {"max_input_chars_per_word": 100, "vocab": vocabulary},
        },
        indent=2,
    )


DEFINITION = TokenizerFile.from_json(tokenizer_json())


def original():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json())
    tokenizer.no_truncation()
    return tokenizer


def test_the_stored_definition_opens_to_the_same_tokenizer():
    assert json.loads(DEFINITION.open().to_str()) == json.loads(original().to_str())


@given(st.text(max_size=40))
def test_texts_get_the_original_ids(text):
    assert DEFINITION.open().encode(text).ids == original().encode(text).ids


def test_ids_with_gaps_are_kept():
    vocabulary = {word: 3 * index for index, word in enumerate(WORDS)}
    opened = TokenizerFile.from_json(tokenizer_json(vocabulary)).open()
    assert opened.get_vocab() == vocabulary


def test_ids_in_another_order_are_kept():
    vocabulary = {word: index for index, word in reversed(list(enumerate(WORDS)))}
    assert TokenizerFile.from_json(tokenizer_json(vocabulary)).open().get_vocab() == vocabulary


def test_write_and_read_give_the_same_definition(tmp_path):
    assert DEFINITION.write(tmp_path) == TOKENIZER_FILE
    assert [path.name for path in tmp_path.iterdir()] == [TOKENIZER_FILE]
    assert TokenizerFile.from_folder(tmp_path) == DEFINITION


def test_ids_of_a_large_vocabulary_cost_nothing():
    words = WORDS + [f"##word{index}" for index in range(5000)]
    text = tokenizer_json({word: index for index, word in enumerate(words)})
    assert len(TokenizerFile.from_json(text).stored) < 0.5 * len(lzma.compress(text.encode()))


@pytest.mark.parametrize(
    "stored",
    [b"", b"not xz", lzma.compress(b"{}")[:-4], lzma.compress(b"{}") + b"more", lzma.compress(b"\xff\xfe")],
)
def test_a_damaged_file_is_an_artifact_error(tmp_path, stored):
    (tmp_path / TOKENIZER_FILE).write_bytes(stored)
    with pytest.raises(ArtifactError, match=r"damaged|cut short"):
        TokenizerFile.from_folder(tmp_path)


def test_a_missing_file_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="cannot read the tokenizer"):
        TokenizerFile.from_folder(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("flyweight.data.tokenizer.MAX_DOCUMENT_BYTES", 1000)
    assert MAX_DOCUMENT_BYTES > 1000
    (tmp_path / TOKENIZER_FILE).write_bytes(lzma.compress(b" " * 100_000))
    with pytest.raises(ArtifactError, match="too large"):
        TokenizerFile.from_folder(tmp_path)


@pytest.mark.parametrize(
    "document", ["[]", "{}", "nonsense", '{"model": {"vocab": ["a", "a"]}}', '{"model": {"vocab": ["a", 1]}}']
)
def test_a_malformed_document_is_an_artifact_error(document):
    with pytest.raises(ArtifactError, match="tokenizer"):
        TokenizerFile(document).open()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {}}', "[" * 100_000])
def test_what_is_no_tokenizer_is_an_input_error(text):
    with pytest.raises(InputError, match="tokenizer"):
        TokenizerFile.from_json(text)


def test_a_missing_tokenizer_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match=r"give the path of a tokenizer\.json"):
        TokenizerFile.from_file(tmp_path / "none.json")


def test_tokenize_pads_to_the_longest_of_the_batch():
    out = Tokenize(tokenizer=DEFINITION, max_length=16)({"any name": ["hello", "hello world world"]})
    assert out["input_ids"].tolist() == [[2, 4, 3, 0, 0], [2, 4, 5, 5, 3]]
    assert out["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert {values.dtype for values in out.values()} == {np.dtype(np.int64)}


def test_tokenize_pads_to_a_fixed_length_with_its_own_id():
    step = Tokenize(tokenizer=DEFINITION, max_length=6, padding="fixed", pad_id=9)
    assert step({"text": ["hello"]})["input_ids"].tolist() == [[2, 4, 3, 9, 9, 9]]


def test_tokenize_cuts_at_its_own_length():
    out = Tokenize(tokenizer=DEFINITION, max_length=4)({"text": ["hello hello hello hello"]})
    assert out["input_ids"].tolist() == [[2, 4, 4, 3]]


def test_tokenize_encodes_pairs_with_their_types():
    step = Tokenize(tokenizer=DEFINITION, max_length=16, pair=True, token_type_ids=True)
    out = step({"text": ["hello"], "text_b": ["world"]})
    assert out["input_ids"].tolist() == [[2, 4, 3, 5, 3]]
    assert out["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_tokenize_does_not_choose_between_two_columns():
    with pytest.raises(InputError, match="choose one with --input-column"):
        Tokenize(tokenizer=DEFINITION, max_length=8)({"a": ["x"], "b": ["y"]})


def test_tokenize_names_what_is_no_text():
    with pytest.raises(InputError, match="input 'text', example 1 is a float"):
        Tokenize(tokenizer=DEFINITION, max_length=8)({"text": ["x", 1.0]})


def test_a_length_without_room_for_text_is_refused():
    with pytest.raises(ArtifactError, match="leaves no room"):
        Tokenize(tokenizer=DEFINITION, max_length=2)({"text": ["x"]})
