"""Pre-tokenizers named in GGUF files: ids equal those of the pipelines in the models' tokenizer.json files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.normalizers import NFC, Lowercase
from tokenizers.pre_tokenizers import ByteLevel

from puna import load_tokenizer
from puna.convert.tokenizer_files import gguf_tokenizer
from puna.errors import TokenizerError
from puna.formats.gguf_writer import write_gguf
from puna.tokenizer.files.byte_level import name_of, pipeline_step, pre_tokenizer, pre_tokenizers
from tests.helpers.vocabularies import CORPUS, random_texts

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SEED_CODER = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+"
    "|\\s+(?!\\S)|\\s+"
)
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
EXAONE_MOE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
JAIS2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
    r"|\s{1,2}(?!\S)|\s{1}"
)
MINICPM5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"


def split(expression: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """Returns a Split step of tokenizer.json."""
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}


def bytes_only() -> dict[str, Any]:
    """Returns a ByteLevel step of tokenizer.json that does not split texts."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


GPT2 = bytes_only() | {"use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}

TOKENIZER_JSON: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [GPT2],
    "trillion": [GPT2],
    "smollm": [DIGITS, GPT2],
    "minerva-7b": [DIGITS, GPT2],
    "llama-bpe": [split(LLAMA3), bytes_only()],
    "midm-2.0": [split(LLAMA3, "Removed", True), bytes_only()],
    "smaug-bpe": [split(LLAMA3), bytes_only()],
    "qwen2": [split(QWEN2), bytes_only()],
    "megrez": [split(QWEN2), bytes_only()],
    "bailingmoe": [split(BAILING), bytes_only()],
    "qwen35": [split(QWEN35), bytes_only()],
    "tekken": [split(TEKKEN), bytes_only()],
    "gpt-4o": [split(GPT4O), bytes_only()],
    "tiny_aya": [split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(GPT4O), bytes_only()],
    "viking": [split(BLOOM), DIGITS, bytes_only()],
    "bloom": [split(BLOOM), bytes_only()],
    "seed-coder": [split(SEED_CODER), bytes_only()],
    "falcon": [PUNCTUATION, GPT2, DIGITS | {"individual_digits": False}, split("[0-9][0-9][0-9]")],
    "falcon3": [PUNCTUATION, GPT2, DIGITS],
    "exaone-moe": [split(EXAONE_MOE), bytes_only()],
    "jais-2": [split(JAIS2), bytes_only()],
    "minicpm5": [split(r"\p{N}{1,3}"), split(MINICPM5), bytes_only()],
    "deepseek-v3": [split(r"\p{N}{1,3}"), split(KANA), split(DEEPSEEK3), bytes_only()],
    "laguna": [split(r"[^\n]+|[\n]+"), split(QWEN2), bytes_only()],
    "superbpe": [split(r"\p{N}+"), split(r"(?=(\d{3})+(?!\d))"), bytes_only()],
}
"""By the name that GGUF files use for a pre-tokenizer: its steps in tokenizer.json."""

LLAMA_PRE_TOKENIZERS = [
    "default", "gpt-2", "llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3", "deepseek-llm", "deepseek-coder",
    "smollm", "tekken", "pixtral", "qwen2", "deepseek-r1-qwen", "viking", "trillion", "megrez", "midm-2.0",
    "seed-coder", "minerva-7b", "mellum", "a.x-4.0", "minicpm5", "granite-docling",
]  # fmt: skip
"""Names in GGUF files whose architecture is llama."""

TEXTS = [
    "It's 2024; we'll see 1234567 things, won't WE'LL? it'sure O'Neill's don't've",
    "digits 1 12 123 1234 12345 1234567890 1,000.5 3..3 x12y ½ ① ١٢٣  12   345",
    "  two  spaces   three\ttab\r\n\r\n\n end \n  x \n",
    "x=3.14 'q' \"d\" (a[0]) {b} <c/> ##!! ...--- 50% $99 `c` a/b://x_y-z",
    "CamelCase HTTPServer snake_case iPhone15Pro ALLCAPS",
    "你好，世界123中文。 こんにちは「カタカナ」 한국어… ไทย हिन्दी क्षि",
    "🚀 (normal) 😶\u200d🌫️ ✅ 👩\u200d👩\u200d👧",
    "e\u0301a\u0308 k\u0323o \u0301x ſ 'ſ",
    "a" + " " * 700 + "b\u00a0c\u3000d",
    *CORPUS,
    *random_texts(60, seed=18),
]


@pytest.fixture(scope="module")
def trained_pipeline() -> Tokenizer:
    """A pipeline trained on texts that were not split, so that its merges cross the boundaries of every rule."""
    pipeline = Tokenizer(models.BPE())
    pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    pipeline.train_from_iterator([*TEXTS, *(text for text in TEXTS for _ in range(2))], trainer)
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def reference(trained_pipeline: Tokenizer, steps: list[dict[str, Any]], whole_tokens: bool) -> Tokenizer:
    """Returns the pipeline with the pre-tokenizer of a tokenizer.json."""
    content = json.loads(trained_pipeline.to_str())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    content["model"]["ignore_merges"] = whole_tokens
    pipeline = Tokenizer.from_str(json.dumps(content))
    pipeline.add_special_tokens([AddedToken("<|bos|>", normalized=False)])
    return pipeline


def write_gguf_tokenizer(path: Path, pipeline: Tokenizer, pre: str) -> Path:
    """Writes a GGUF file with the vocabulary of a pipeline and the name of a pre-tokenizer; returns its path."""
    content = json.loads(pipeline.to_str())["model"]
    tokens = [*content["vocab"], "<|bos|>"]
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (len(tokens) - 1) + [3], np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["merges"]],
        "tokenizer.ggml.add_bos_token": False,
    }
    write_gguf(path, keys, [])
    return path


def splits_of(pre: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the expressions with which a pre-tokenizer splits texts, before and after the byte mapping."""
    return pre_tokenizer(pre).expressions, pre_tokenizer(pre).after_bytes


@pytest.mark.parametrize("pre", TOKENIZER_JSON)
def test_ids_equal_those_of_the_tokenizer_json(trained_pipeline: Tokenizer, pre: str, tmp_path: Path) -> None:
    expected = reference(trained_pipeline, TOKENIZER_JSON[pre], pre_tokenizer(pre).whole_tokens)
    tokenizer = load_tokenizer(write_gguf_tokenizer(tmp_path / "m.gguf", trained_pipeline, pre))
    unsplit = 0
    for text in TEXTS:
        assert tokenizer.encode(text) == expected.encode(text).ids, text
        assert tokenizer.decode(tokenizer.encode(text)) == text
        unsplit += tokenizer.encode(text) == trained_pipeline.encode(text).ids
    assert unsplit < len(TEXTS) // 2, "most texts get the same ids without the pre-tokenizer"


@pytest.mark.parametrize("pre", TOKENIZER_JSON)
def test_a_name_is_found_for_the_rules_of_a_tokenizer_json(
    trained_pipeline: Tokenizer, pre: str, tmp_path: Path
) -> None:
    """The name in the GGUF keys of a converted tokenizer.json is that of rules that give the same ids."""
    pipeline = reference(trained_pipeline, TOKENIZER_JSON[pre], pre_tokenizer(pre).whole_tokens)
    folder = tmp_path / "folder"
    folder.mkdir()
    pipeline.save(str(folder / "tokenizer.json"))
    keys, _ = gguf_tokenizer(folder, pipeline.get_vocab_size())
    assert splits_of(str(keys["tokenizer.ggml.pre"])) == splits_of(pre)
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"} | keys, [])
    converted = load_tokenizer(tmp_path / "m.gguf")
    for text in TEXTS:
        assert converted.encode(text, add_special_tokens=False) == pipeline.encode(text).ids, text


def test_every_pre_tokenizer_of_llama_models_has_rules(trained_pipeline: Tokenizer, tmp_path: Path) -> None:
    for pre in LLAMA_PRE_TOKENIZERS:
        tokenizer = load_tokenizer(write_gguf_tokenizer(tmp_path / "m.gguf", trained_pipeline, pre))
        assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in TEXTS), pre


def test_name_of_distinguishes_all_rules(trained_pipeline: Tokenizer) -> None:
    """For the pipeline of every rule, `name_of` returns a name with the same expressions."""
    names = {rules: pre for pre, rules in pre_tokenizers().items()}
    for rules, pre in names.items():
        pipeline = reference(trained_pipeline, [], rules.whole_tokens)
        pipeline.pre_tokenizer = pipeline_step(rules)
        assert splits_of(name_of(pipeline)) == splits_of(pre), pre


def test_ignore_merges_is_compared_only_if_it_matters() -> None:
    """A name whose rules differ only in `ignore_merges` is used if the merges can form every token."""
    alphabet = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    vocab = alphabet | {"ab": 256}
    for merges, expected in (([("a", "b")], "tekken"), ([], None)):
        pipeline = Tokenizer(models.BPE(vocab, merges))
        pipeline.pre_tokenizer = pipeline_step(pre_tokenizer("tekken"))
        if expected is None:
            with pytest.raises(TokenizerError, match="splits texts differently"):
                name_of(pipeline)
        else:
            assert name_of(pipeline) == expected


def test_normalizers_that_change_texts_are_refused(trained_pipeline: Tokenizer, tmp_path: Path) -> None:
    pipeline = reference(trained_pipeline, [GPT2], False)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    assert gguf_tokenizer(tmp_path, pipeline.get_vocab_size())[1] == []
    pipeline.normalizer = NFC()
    assert name_of(pipeline) == "gpt-2"
    pipeline.save(str(tmp_path / "tokenizer.json"))
    assert gguf_tokenizer(tmp_path, pipeline.get_vocab_size())[1] == [
        "GGUF has no key for the tokenizer's normalizer (NFC): readers encode decomposed characters differently"
    ]
    pipeline.normalizer = Lowercase()
    with pytest.raises(TokenizerError, match=r"changes texts before it splits them \(.*Lowercase.*convert to hf"):
        name_of(pipeline)


def test_unknown_names_are_refused(trained_pipeline: Tokenizer, tmp_path: Path) -> None:
    path = write_gguf_tokenizer(tmp_path / "m.gguf", trained_pipeline, "my-own")
    with pytest.raises(TokenizerError, match=r"'my-own': unknown pre-tokenizer; puna knows .*viking.*tokenizer\.json"):
        load_tokenizer(path)
    pipeline = reference(trained_pipeline, [split("[0-9]{7}"), bytes_only()], False)
    with pytest.raises(TokenizerError, match="splits texts differently from every pre-tokenizer"):
        name_of(pipeline)
