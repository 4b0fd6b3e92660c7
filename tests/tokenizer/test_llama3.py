"""Tokenizers read from Llama 3's tiktoken files (ranks of byte strings) give the ids of tiktoken."""

from __future__ import annotations

import base64
import random
import time

import pytest
import tiktoken

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import TokenizerError
from puna.tokenizer.files.byte_level import BYTE_TO_CHARACTER, CHARACTER_TO_BYTE, merges_of
from tests.helpers.vocabularies import CORPUS, random_texts

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""From llama_models/llama3/tokenizer.py."""


def random_unicode_text(rng: random.Random) -> str:
    """Returns a random text: characters from all of Unicode, mixed with spaces and contractions."""
    planes = [(0x20, 0x300), (0x300, 0x3000), (0x3000, 0xD800), (0xE000, 0x11000), (0x1F000, 0x1FA00)]
    choices = [
        lambda: chr(rng.randrange(*rng.choice(planes))),
        lambda: rng.choice([" ", "  ", "\n", "\r\n", "\t", "'S", "'ll"]),
    ]
    return "".join(rng.choice(choices)() for _ in range(rng.randint(0, 14)))


def write_ranks(path):
    """Writes a small tiktoken file; returns its ranks: every byte, then parts of `CORPUS` made of two tokens."""
    tokens = [bytes((byte,)) for byte in range(256)]
    used = set(tokens)
    counts: dict[bytes, int] = {}
    for word in " ".join(CORPUS).split(" "):
        data = b" " + word.encode()
        for size in (2, 3, 4, 5):
            for at in range(len(data) - size + 1):
                counts[data[at : at + size]] = counts.get(data[at : at + size], 0) + 1
    for token, _ in sorted(counts.items(), key=lambda item: (len(item[0]), -item[1], item[0]))[:600]:
        if any(token[:at] in used and token[at:] in used for at in range(1, len(token))):
            used.add(token)
            tokens.append(token)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return {token: rank for rank, token in enumerate(tokens)}


def assert_agrees_with_tiktoken(tokenizer, ranks, texts):
    """Asserts that ids equal those of tiktoken, and that decoding returns the text."""
    reference = tiktoken.Encoding("reference", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ids == reference.encode(text, disallowed_special=()), text
        assert tokenizer.decode(ids) == text


def test_ids_of_a_small_ranks_file_equal_those_of_tiktoken(tmp_path):
    ranks = write_ranks(tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, LlamaTokenizerFast) and len(tokenizer) == len(ranks) + 256 > 600
    rng = random.Random(10)
    assert_agrees_with_tiktoken(
        tokenizer, ranks, [*CORPUS, *random_texts(200), *(random_unicode_text(rng) for _ in range(500))]
    )
    assert tokenizer.encode("a") == [len(ranks), ranks[b"a"]]
    assert LlamaTokenizerFast.from_pretrained(tmp_path).encode("a") == tokenizer.encode("a")
    assert load_tokenizer(tmp_path, add_bos_token=False).encode("a") == [ranks[b"a"]]
    with pytest.raises(TokenizerError, match="AutoTokenizer"):
        LlamaTokenizer.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def llama3(llama3_model):
    return load_tokenizer(llama3_model)


@pytest.mark.timing
@pytest.mark.slow
def test_llama_3_loads_fast(llama3_model):
    start = time.process_time()
    load_tokenizer(llama3_model)
    assert time.process_time() - start < 4.0  # 1.7 s when nothing else runs


@pytest.mark.slow
def test_ids_of_llama_3_equal_those_of_tiktoken(llama3, llama3_model):
    lines = (line.split() for line in llama3_model.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    rng = random.Random(11)
    assert_agrees_with_tiktoken(
        llama3, ranks, [*CORPUS, "\n".join(CORPUS), " " * 300, *(random_unicode_text(rng) for _ in range(3000))]
    )


@pytest.mark.slow
def test_llama_3_has_its_special_tokens(llama3):
    assert (llama3.bos_token_id, llama3.eos_token_id, llama3.pad_token_id) == (128000, 128001, 128004)
    names = ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    assert llama3.convert_tokens_to_ids(names) == [128006, 128007, 128008, 128009, 128010]
    assert llama3.convert_ids_to_tokens([128002, 128005, 128011, 128255]) == [
        f"<|reserved_special_token_{number}|>" for number in (0, 2, 3, 247)
    ]
    assert len(llama3) == 128256
    assert llama3.encode("hi<|eot_id|>") == [128000, *llama3.encode("hi", add_special_tokens=False), 128009]


def test_llama_3_renders_its_chat_format(llama3):
    ids = llama3.apply_chat_template([{"role": "user", "content": " Hi "}], add_generation_prompt=True)
    text = (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert llama3.decode(ids) == text and ids[0] == 128000 and ids.count(128000) == 1


@pytest.mark.parametrize("damage", ["missing rank", "repeated token", "missing byte", "empty token", "not base64"])
def test_damaged_ranks_are_refused(tmp_path, damage):
    path = tmp_path / "tokenizer.model"
    write_ranks(path)
    lines = path.read_bytes().splitlines()
    lines = {
        "missing rank": [*lines[:40], *lines[41:]],
        "repeated token": [*lines, base64.b64encode(b"a") + b" %d" % len(lines)],
        "missing byte": [b"%s %d" % (line.split()[0], i) for i, line in enumerate(lines[1:])],
        "empty token": [*lines, b"= %d" % len(lines)],
        "not base64": [*lines[:300], b"*** 300", *lines[301:]],
    }[damage]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model.*download"):
        load_tokenizer(path)


def test_the_alphabet_equals_that_of_tokenizers():
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(BYTE_TO_CHARACTER.values()) == sorted(ByteLevel.alphabet())
    for byte in range(256):
        assert CHARACTER_TO_BYTE[BYTE_TO_CHARACTER[byte]] == byte
    for character in "aé日🦙 \n":
        ((spelled, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
        assert bytes(CHARACTER_TO_BYTE[c] for c in spelled) == character.encode()


def test_the_mistral_model_agrees_with_sentencepiece(mistral_model):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(mistral_model))
    tokenizer, fast = load_tokenizer(mistral_model), LlamaTokenizerFast(mistral_model)
    rng = random.Random(12)
    for text in [*CORPUS, *(random_unicode_text(rng) for _ in range(300))]:
        assert tokenizer.encode(text) == [1, *processor.encode(text)]
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == processor.decode(
            processor.encode(text)
        )
        if text:
            assert fast.encode(text) == tokenizer.encode(text)


def merges_by_definition(tokens, vocab):
    """Returns what `merges_of` returns, by looking up both parts at every split of every token."""
    merges = []
    for token in tokens:
        pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if {token[:i], token[i:]} <= vocab.keys()]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


@pytest.mark.parametrize("alphabet", ["ab", "abc\0", "\u00e9\U0001f680\ud800a"])
def test_merges_are_all_pairs_that_concatenate_to_tokens(alphabet):
    generator = random.Random(0)
    found = 0
    for count in range(200):
        parts = ["".join(generator.choices(alphabet, k=generator.randint(0, 6))) for _ in range(count % 60)]
        words = [*dict.fromkeys(parts)]
        vocab = dict(zip(words, generator.sample(range(1000), len(words)), strict=True))
        tokens = [*generator.sample(words, generator.randint(0, len(words))), "aab", ""]
        expected = merges_by_definition(tokens, vocab)
        assert merges_of(tokens, vocab) == expected
        found += len(expected)
    assert found > 500


def test_tokens_with_too_many_characters_are_errors():
    with pytest.raises(TokenizerError, match="has 1025 characters; the limit is 1024"):
        merges_of(["a" * 1025], {"a": 0})
