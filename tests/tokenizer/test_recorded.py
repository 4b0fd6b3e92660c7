"""For two vocabularies, results equal those recorded from transformers 4.34.1, and ids equal published test vectors.

The vocabularies are those of the golden checkpoint and, if shared/ exists, of Llama 2.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from tests.conftest import SHARED
from tests.golden.files import LAYOUTS, RECORDS, TOKENIZER, read_expected

CLASSES = {
    "slow_legacy": lambda model: LlamaTokenizer(model, legacy=True),
    "slow_new": lambda model: LlamaTokenizer(model, legacy=False),
    "fast": LlamaTokenizerFast,
}


@dataclass
class Vocabulary:
    """A SentencePiece model, the path of its results in transformers 4.34.1, and published test vectors."""

    model: Path
    record_path: Path
    text_count: int
    vectors: list[dict[str, Any]]
    user_message: str

    @property
    def records(self) -> dict[str, Any]:
        return json.loads(self.record_path.read_text())


def vocabularies() -> dict[str, Vocabulary]:
    """Returns the vocabularies whose files exist, by name."""
    vectors = [{"text": example["text"], "ids_with_bos": example["ids"]} for example in read_expected()["ids"]]
    result = {"golden": Vocabulary(TOKENIZER, RECORDS["4.34.1"], 28, vectors, "Why do llamas hum?")}
    folder = SHARED / "fixtures/tokenizers"
    if folder.is_dir():
        vectors = json.loads((folder / "llama2_vectors.json").read_text())
        assert len(vectors) == 20
        model, record = folder / "llama2-tokenizer.model", folder / "llama2_transformers_4.34.1.json"
        result["llama2"] = Vocabulary(model, record, 20, vectors, "Hello")
    return result


VOCABULARIES = vocabularies()


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request):
    return VOCABULARIES[request.param]


@pytest.fixture(scope="module")
def model(vocabulary) -> Path:
    return vocabulary.model


@pytest.fixture(scope="module", params=sorted(CLASSES))
def tokenizer_and_record(request, vocabulary):
    """A tokenizer of puna, and the results of the same class in transformers 4.34.1."""
    return CLASSES[request.param](vocabulary.model), vocabulary.records[request.param]


def test_ids_and_decoded_texts_equal_the_record(tokenizer_and_record, vocabulary):
    tokenizer, record = tokenizer_and_record
    assert len(record["r"]) == vocabulary.text_count
    for text, expected in record["r"].items():
        ids = tokenizer(text)["input_ids"]
        assert ids == expected["ids"], text
        assert tokenizer.encode(text) == expected["ids"], text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected["nospecial"], text
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == expected["nospecial"], text
        assert tokenizer.decode(ids) == expected["dec"], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == expected["dec_skip"], text


def test_padding_side_keys_and_chat_equal_the_record(tokenizer_and_record, vocabulary):
    tokenizer, record = tokenizer_and_record
    assert tokenizer.padding_side == record["padding_side"]
    assert list(tokenizer("hi")) == record["keys"]
    chat = [{"role": "user", "content": vocabulary.user_message}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == record["chat"]


def test_saved_files_load_again(tokenizer_and_record, tmp_path):
    tokenizer, record = tokenizer_and_record
    paths = tokenizer.save_pretrained(tmp_path)
    assert sorted(Path(path).name for path in paths) == sorted(record["files"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(record["files"])
    reloaded = type(tokenizer).from_pretrained(tmp_path)
    assert [reloaded.encode(text) for text in record["r"]] == [expected["ids"] for expected in record["r"].values()]


def test_the_golden_tokenizer_json_is_read_as_transformers_5_reads_it():
    record = json.loads(RECORDS["5.23.0"].read_text())["file"]["r"]
    tokenizer = load_tokenizer(LAYOUTS["hf"])
    assert len(record) == 28
    for text, expected in record.items():
        assert tokenizer.encode(text) == expected["ids"], text
        assert tokenizer.encode(text, add_special_tokens=False) == expected["nospecial"], text
        assert tokenizer.decode(expected["ids"]) == expected["dec"], text
        assert tokenizer.decode(expected["ids"], skip_special_tokens=True) == expected["dec_skip"], text


def test_the_class_of_transformers_5_differs_only_after_leading_spaces():
    """To a text that starts with a space, LlamaTokenizer of transformers 5 adds no space, unlike that of 4.34.1."""
    record = json.loads(RECORDS["5.23.0"].read_text())["class"]["r"]
    tokenizer = LlamaTokenizerFast(TOKENIZER)
    differing = {text for text, expected in record.items() if tokenizer.encode(text) != expected["ids"]}
    assert differing == {" Grassland", "   three lead", " ", "one </s> two", "<s> day", "▁over"}


@pytest.mark.parametrize("text", ["</s>LLAMA", "hum</s>LLAMA"])
def test_legacy_is_the_default_for_the_golden_vocabulary(text):
    records = VOCABULARIES["golden"].records
    legacy, new = (records[name]["r"][text]["ids"] for name in ("slow_legacy", "slow_new"))
    assert LlamaTokenizer(TOKENIZER).encode(text) == legacy != new


def test_legacy_is_the_default(shared):
    model = VOCABULARIES["llama2"].model
    assert LlamaTokenizer(model).encode("abs</s>USER") == [1, 6425, 2, 3148, 1001]


def test_ids_equal_the_published_vectors(vocabulary):
    tokenizers = [load_tokenizer(vocabulary.model), *(make(vocabulary.model) for make in CLASSES.values())]
    for vector in vocabulary.vectors:
        for tokenizer in tokenizers:
            assert tokenizer.encode(vector["text"]) == vector["ids_with_bos"], (type(tokenizer), vector["text"])


def test_load_tokenizer_reads_special_tokens_as_text_and_adds_no_system_prompt_for_the_golden_vocabulary():
    tokenizer = load_tokenizer(TOKENIZER)
    encode = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER)).encode
    assert tokenizer.encode("hum</s>LLAMA") == [1, *encode("hum</s>LLAMA")]
    legacy = VOCABULARIES["golden"].records["slow_legacy"]["r"]["hum</s>LLAMA"]["ids"]
    assert tokenizer.encode("hum</s>LLAMA", split_special_tokens=False) == legacy
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}]) == [1, *encode("[INST] Hello [/INST]")]


def test_load_tokenizer_reads_special_tokens_as_text_and_adds_no_system_prompt(shared):
    tokenizer = load_tokenizer(VOCABULARIES["llama2"].model)
    assert tokenizer.encode("abs</s>USER") == [1, *tokenizer.sp_model.encode("abs</s>USER")]
    assert tokenizer.encode("abs</s>USER", split_special_tokens=False) == [1, 6425, 2, 3148, 1001]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}]) == [
        1, 518, 25580, 29962, 15043, 518, 29914, 25580, 29962,
    ]  # fmt: skip


def test_dialogue_is_encoded_as_in_meta_s_code(model):
    """A pair of turns becomes BOS, SentencePiece's ids of the turns and EOS (Meta's llama/generation.py)."""
    tokenizer = load_tokenizer(model)
    turns = ["Hi there", "Hello! How are you?", "Fine"]
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    encode = tokenizer.sp_model.encode
    expected = [1, *encode(f"[INST] {turns[0]} [/INST] {turns[1]} "), 2, 1, *encode(f"[INST] {turns[2]} [/INST]")]
    assert tokenizer.apply_chat_template(chat) == expected


@pytest.mark.timing
def test_loading_is_fast_and_encoding_linear(model):
    start = time.process_time()
    tokenizer = load_tokenizer(model)
    assert time.process_time() - start < 1.0
    costs = []
    for size in (100_000, 400_000):
        text = "the llama walks over the puna " * (size // 30)
        start = time.process_time()
        tokenizer.encode(text)
        costs.append(time.process_time() - start)
    assert costs[1] < 12 * costs[0]  # 4 if linear, 16 if quadratic
