"""The classes give what transformers 4.34.1 was measured to give on Llama 2's model, and the published vectors."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer

CLASSES = {
    "slow_legacy": lambda model: LlamaTokenizer(model, legacy=True),
    "slow_new": lambda model: LlamaTokenizer(model, legacy=False),
    "fast": LlamaTokenizerFast,
}


@pytest.fixture(scope="module")
def model(shared: Path) -> Path:
    return shared / "fixtures/tokenizers/llama2-tokenizer.model"


@pytest.fixture(scope="module", params=sorted(CLASSES))
def recorded(request, shared, model):
    records = json.loads((shared / "fixtures/tokenizers/llama2_transformers_4.34.1.json").read_text())
    return CLASSES[request.param](model), records[request.param]


def test_ids_and_decodes(recorded):
    tokenizer, record = recorded
    assert len(record["r"]) == 20
    for text, expected in record["r"].items():
        ids = tokenizer(text)["input_ids"]
        assert ids == expected["ids"], text
        assert tokenizer.encode(text) == expected["ids"], text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected["nospecial"], text
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == expected["nospecial"], text
        assert tokenizer.decode(ids) == expected["dec"], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == expected["dec_skip"], text


def test_padding_side_keys_and_chat(recorded):
    tokenizer, record = recorded
    assert tokenizer.padding_side == record["padding_side"]
    assert list(tokenizer("hi")) == record["keys"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False) == record["chat"]


def test_files_written_and_read_back(recorded, tmp_path):
    tokenizer, record = recorded
    written = tokenizer.save_pretrained(tmp_path)
    assert sorted(Path(path).name for path in written) == sorted(record["files"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(record["files"])
    again = type(tokenizer).from_pretrained(tmp_path)
    assert [again.encode(text) for text in record["r"]] == [expected["ids"] for expected in record["r"].values()]


def test_legacy_is_the_default(model):
    assert LlamaTokenizer(model).encode("abs</s>USER") == [1, 6425, 2, 3148, 1001]


def test_published_vectors(shared, model):
    vectors = json.loads((shared / "fixtures/tokenizers/llama2_vectors.json").read_text())
    assert len(vectors) == 20
    tokenizers = [load_tokenizer(model), *(make(model) for make in CLASSES.values())]
    for vector in vectors:
        for tokenizer in tokenizers:
            assert tokenizer.encode(vector["text"]) == vector["ids_with_bos"], (type(tokenizer), vector["text"])


def test_load_tokenizer_reads_special_tokens_as_text_and_adds_no_system_prompt(model):
    tokenizer = load_tokenizer(model)
    assert tokenizer.encode("abs</s>USER") == [1, *tokenizer.sp_model.encode("abs</s>USER")]
    assert tokenizer.encode("abs</s>USER", split_special_tokens=False) == [1, 6425, 2, 3148, 1001]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}]) == [
        1, 518, 25580, 29962, 15043, 518, 29914, 25580, 29962,
    ]  # fmt: skip


def test_dialogue_is_encoded_as_meta_does(model):
    """Each pair of turns is BOS, the turns by SentencePiece, EOS (llama/generation.py, chat_completion)."""
    tokenizer = load_tokenizer(model)
    turns = ["Hi there", "Hello! How are you?", "Fine"]
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    encode = tokenizer.sp_model.encode
    expected = [1, *encode(f"[INST] {turns[0]} [/INST] {turns[1]} "), 2, 1, *encode(f"[INST] {turns[2]} [/INST]")]
    assert tokenizer.apply_chat_template(chat) == expected


@pytest.mark.timing
def test_loading_is_quick_and_long_text_linear(model):
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
