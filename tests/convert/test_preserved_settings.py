"""Conversions keep special tokens, settings, descriptions and chat templates, or note what the target cannot hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna import LlamaConfig, LlamaTokenizer, convert, load_tokenizer
from puna.checkpoint import open_checkpoint
from puna.checkpoint.meta_params import params_from_config
from puna.config import GenerationConfig, GenerationDefaults, generation_notes
from puna.errors import CheckpointError, TokenizerError
from puna.formats import gguf
from puna.formats.gguf import open_gguf
from puna.formats.gguf_writer import write_gguf
from puna.formats.new_tensor import NewTensor
from tests.helpers.meta_models import Family, hf_tensors, write_meta
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder
from tests.helpers.torch_files import load_torch
from tests.helpers.vocabularies import train_sentencepiece

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def write_model(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Writes a Hugging Face folder with 420 SentencePiece pieces; converted to Meta's layout, it is read as Llama 2."""
    fields = {"vocab_size": 420, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2}
    config = tiny_config(**fields | changes)
    write_folder(folder, config, tiny_tensors(config))
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    if generation is not None:
        GenerationConfig.from_stored(generation).save_pretrained(folder)
    return folder


def conversion_notes(source: Path, target: Path, **options: Any) -> str:
    """Converts a model and returns the notes, one per line."""
    return "\n".join(convert(source, target, **options).notes)


def read_eos_ids(path: Path) -> tuple[int, ...]:
    generation = open_checkpoint(path).generation_config
    assert generation is not None
    return generation.eos_token_ids


@pytest.mark.parametrize(
    ("eos", "generation", "eos_ids"),
    [
        (5, None, (5,)),
        ([5, 6, 7], None, (5, 6, 7)),
        (5, {"eos_token_id": [6, 5, 7]}, (5, 6, 7)),
        (5, {"eos_token_id": 9}, (9,)),
        ([5, 6], {"eos_token_id": [7, 6]}, (6, 7)),
    ],
)
def test_gguf_keeps_the_eos_tokens(
    eos: Any, generation: dict[str, Any] | None, eos_ids: tuple[int, ...], tmp_path: Path
) -> None:
    source = write_model(tmp_path / "hf", generation, eos_token_id=eos)
    assert conversion_notes(source, tmp_path / "m.gguf", to="gguf") == ""
    assert read_eos_ids(tmp_path / "m.gguf") == eos_ids
    configured = [eos] if isinstance(eos, int) else eos
    assert set(eos_ids) == set(GenerationConfig(**generation or {"eos_token_id": configured}).eos_token_ids)


@pytest.mark.parametrize("eos_ids", [(5,), (5, 6), (5, 6, 7)])
def test_eos_tokens_survive_repeated_conversions(eos_ids: tuple[int, ...], tmp_path: Path) -> None:
    """EOT and EOM are not swapped, neither from GGUF to GGUF nor through another layout."""
    source = write_model(tmp_path / "hf", {"eos_token_id": list(eos_ids)}, eos_token_id=5)
    convert(source, tmp_path / "1.gguf", to="gguf")
    convert(tmp_path / "1.gguf", tmp_path / "2.gguf", to="gguf")
    convert(tmp_path / "2.gguf", tmp_path / "back", to="hf")
    convert(tmp_path / "back", tmp_path / "3.gguf", to="gguf")
    names = ("eos", "eot", "eom")
    keys = [open_gguf(tmp_path / f"{number}.gguf").metadata for number in (1, 2, 3)]
    result = [tuple(one.get(f"tokenizer.ggml.{name}_token_id") for name in names) for one in keys]
    assert result == [{1: (5, None, None), 2: (5, 6, None), 3: (5, 7, 6)}[len(eos_ids)]] * 3
    assert read_eos_ids(tmp_path / "back") == eos_ids


def test_descriptions_are_copied_to_gguf_files_and_noted_for_other_layouts(tmp_path: Path) -> None:
    """Descriptions are copied to another GGUF file with their types; for other layouts a note lists them."""
    convert(write_model(tmp_path / "hf"), tmp_path / "m.gguf", to="gguf")
    file = open_gguf(tmp_path / "m.gguf")
    descriptions = {"general.license": "apache-2.0", "general.score": np.float64(0.1), "general.count": -3,
            "my.key": True, "my.large": np.float64(1e300), "llama.new.key": 7}  # fmt: skip
    tensors = [NewTensor(t.name, t.format, t.shape, np.array(t.data)) for t in file.tensors.values()]
    write_gguf(tmp_path / "s.gguf", dict(file.metadata) | descriptions, tensors)
    assert conversion_notes(tmp_path / "s.gguf", tmp_path / "t.gguf", to="gguf") == ""
    result = open_gguf(tmp_path / "t.gguf").metadata
    assert {key: result[key] for key in descriptions} == descriptions
    for to in ("hf", "meta"):
        notes = conversion_notes(tmp_path / "s.gguf", tmp_path / f"to {to}", to=to)
        names = "license, score, count, my.key, my.large, llama.new.key"
        assert f"cannot hold the file's descriptions of the model ({names})" in notes


def test_a_gguf_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(write_model(tmp_path / "hf"), tmp_path / "m.gguf", to="gguf")
    read, paths = gguf._open_file, []
    monkeypatch.setattr(gguf, "_open_file", lambda path: paths.append(path) or read(path))
    text = tmp_path / "text"
    text.write_text("The llama hums. " * 50)
    convert(tmp_path / "m.gguf", tmp_path / "q.gguf", quantize="Q4_0", calibrate=text)
    assert paths == [tmp_path / "m.gguf"]


def test_unknown_keys_of_config_json_are_copied_or_noted(tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    custom = {"my_key": [1, {"a": 2}], "my_null": None, "auto_map": {"AutoConfig": "own.Config"}}
    (source / "config.json").write_text(json.dumps(config | custom))
    assert conversion_notes(source, tmp_path / "copy", to="hf") == ""
    copy = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert {key: copy[key] for key in custom} == custom
    for to in ("gguf", "meta"):
        assert "cannot hold config.json's my_key, my_null; these" in conversion_notes(source, tmp_path / to, to=to)


def test_special_tokens_of_the_generation_config_take_precedence(tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf", {"bos_token_id": 3, "pad_token_id": 7, "eos_token_id": 2})
    convert(source, tmp_path / "m.gguf", to="gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back", to="hf")
    assert GenerationConfig.from_pretrained(tmp_path / "back") == GenerationConfig.from_pretrained(source)
    text = conversion_notes(source, tmp_path / "meta", to="meta")
    assert "bos_token_id 3, read as 1" in text and "pad_token_id 7, read as None" in text


def test_settings_without_a_gguf_key_are_noted(tmp_path: Path) -> None:
    source = write_model(
        tmp_path / "hf", {"eos_token_id": [5, 6, 7, 8], "temperature": 0.6, "top_p": 0.9}, eos_token_id=5
    )
    text = conversion_notes(source, tmp_path / "m.gguf", to="gguf")
    assert "tokens [6] end answers too" in text and "cannot hold generation_config's temperature 0.6, top_p 0.9" in text
    assert read_eos_ids(tmp_path / "m.gguf") == (5, 7, 8)


def test_a_copied_gguf_file_keeps_its_file_type(tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf")
    convert(source, tmp_path / "s.gguf", quantize="Q4_0")
    raw = (tmp_path / "s.gguf").read_bytes()
    key = b"general.file_type" + (4).to_bytes(4, "little")
    assert raw.count(key + (2).to_bytes(4, "little")) == 1
    (tmp_path / "s.gguf").write_bytes(raw.replace(key + b"\2", key + b"\x13"))  # IQ2_XXS, which puna cannot write
    convert(tmp_path / "s.gguf", tmp_path / "m.gguf", to="gguf")
    assert open_gguf(tmp_path / "m.gguf").metadata["general.file_type"] == 0x13
    convert(tmp_path / "s.gguf", tmp_path / "n.gguf", quantize="Q8_0")
    assert open_gguf(tmp_path / "n.gguf").metadata["general.file_type"] == 7


@pytest.mark.parametrize(
    ("changes", "generation", "expected"),
    [
        ({}, None, ()),
        ({"max_position_embeddings": 2048}, None, ("read with llama_version 1",)),
        ({"max_position_embeddings": 1000}, None, ("context of 1000, read as 4096",)),
        ({"bos_token_id": 7}, None, ("bos_token_id 7, read as 1",)),
        ({"pad_token_id": 3}, None, ("pad_token_id 3, read as None",)),
        ({"eos_token_id": [2, 5]}, None, ("EOS tokens [2, 5], read as [2]",)),
        (
            {},
            {"eos_token_id": [2, 5], "top_p": 0.9},
            ("EOS tokens [2, 5], read as [2]", "cannot hold generation_config's top_p 0.9"),
        ),
    ],
)
def test_settings_that_metas_files_cannot_hold_are_noted(
    changes: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    result = convert(write_model(tmp_path / "hf", generation, **changes), tmp_path / "meta", to="meta").notes
    assert len(result) == len(expected), result
    assert all(part in note for part, note in zip(expected, result, strict=True)), result


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rope_scaling_survives_conversion_to_metas_layout_and_back(theta: float, factor: float, tmp_path: Path) -> None:
    scaling = LLAMA3 | {"factor": factor}
    source = write_model(tmp_path / "hf", rope_theta=theta, rope_scaling=scaling, max_position_embeddings=131072)
    outcome = convert(source, tmp_path / "meta", to="meta", verify=True)
    text = "\n".join(outcome.notes)
    assert outcome.nll["after"] == pytest.approx(
        outcome.nll["before"], abs=1e-6
    )  # --verify assumes the Llama release that has this RoPE factor
    version = "3.2" if factor == 32 else None
    assert ("read with llama_version 3.2" in text) == (version is not None)
    convert(tmp_path / "meta", tmp_path / "back", to="hf", llama_version=version)
    result = LlamaConfig.from_pretrained(tmp_path / "back")
    assert result.rope_theta == theta and result.rope_scaling == LlamaConfig.from_pretrained(source).rope_scaling


def test_a_rope_factor_that_no_llama_release_has_is_refused() -> None:
    config = tiny_config(rope_scaling=LLAMA3 | {"factor": 16.0}, max_position_embeddings=131072)
    with pytest.raises(CheckpointError, match=r"rope_scaling .*16\.0.*cannot express"):
        params_from_config(config)


def test_a_separate_head_that_equals_the_embedding_is_noted(tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf")
    config = LlamaConfig.from_pretrained(source)
    tensors = tiny_tensors(config)
    write_folder(source, config, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()})
    assert not open_checkpoint(source).config.tie_word_embeddings
    outcome = convert(source, tmp_path / "meta", to="meta", shards=2, verify=True)
    assert "head and embedding are equal" in outcome.notes[-1] and outcome.conversion.verified == len(tensors) - 1
    shard = load_torch(tmp_path / "meta" / "consolidated.00.pth")
    assert np.array_equal(shard["output.weight"], tensors["model.embed_tokens.weight"][:210])
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][-1, -1] += 1  # all numbers but the last are equal
    write_folder(source, config, tensors)
    assert convert(source, tmp_path / "other", to="meta", verify=True).notes == []


@pytest.mark.parametrize("fast", [False, True])
def test_added_tokens_survive_conversion_to_metas_layout(fast: bool, tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf", vocab_size=424)
    tokenizer = LlamaTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(source)
    if fast:
        load_tokenizer(source).save_pretrained(source)
        assert (source / "tokenizer.json").exists() and (source / "tokenizer.model").exists()
    text = conversion_notes(source, tmp_path / "meta", to="meta")
    assert "Hugging Face's files are written" in text
    for text in ("<|im_start|>user\nHow wide is a llama?<|im_end|>", "The grassland"):
        ids = load_tokenizer(source).encode(text)
        assert load_tokenizer(tmp_path / "meta").encode(text) == ids
        assert LlamaTokenizer.from_pretrained(tmp_path / "meta").encode(text) == tokenizer.encode(text)


def test_tokenizer_settings_that_metas_files_cannot_hold_are_noted(tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf")
    tokenizer = LlamaTokenizer.from_pretrained(source, add_bos_token=False, add_eos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["▁the"]})
    tokenizer.save_pretrained(source)
    text = conversion_notes(source, tmp_path / "meta", to="meta")
    assert "Meta's layout cannot hold add_bos_token False and add_eos_token True" in text
    assert "▁the are special tokens" in text


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_user_defined_pieces_are_not_split(to: str, tmp_path: Path) -> None:
    """User-defined pieces are found before any merge: in Meta's files, in converted files, and by transformers."""
    family = Family("tiny", 16, None, 1, "2", vocab=420)
    source = write_meta(tmp_path / "meta", family, hf_tensors(family))
    (source / "tokenizer.model").write_bytes(train_sentencepiece(user_defined_symbols=["<tool>", "llama!"]))
    outcome = convert(source, tmp_path / "out", to=to, verify=True)
    assert not any("ids that differ" in note for note in outcome.notes)
    convert(tmp_path / "out", tmp_path / "hf", to="hf")
    tools = load_tokenizer(source).convert_tokens_to_ids(["<tool>"])
    texts = ("llama <tool>grass", "a llama!<tool> <tool>", "<tool> llama!s")
    for text in texts:
        ids = load_tokenizer(source).encode(text)
        assert set(tools) <= set(ids)
        for folder in ("out", "hf"):
            assert load_tokenizer(tmp_path / folder).encode(text) == ids
    auto = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "hf", use_fast=True)
    assert all(set(tools) <= set(auto.encode(text)) for text in texts)


def test_added_tokens_with_spaces_survive_conversion(tmp_path: Path) -> None:
    """Spaces stay in GGUF files and become U+2581 in SentencePiece models, unless another piece has that text."""
    source = write_model(tmp_path / "hf", vocab_size=430)
    tokenizer = LlamaTokenizer.from_pretrained(source, legacy=True)
    tokenizer.add_tokens(["foo bar", "  ", " the"])
    tokenizer.save_pretrained(source)
    files = [tmp_path / f"{number}.gguf" for number in range(2)]
    convert(source, files[0], to="gguf")
    convert(files[0], tmp_path / "back", to="hf")
    convert(tmp_path / "back", files[1], to="gguf")
    for file in files:
        assert list(open_gguf(file).metadata["tokenizer.ggml.tokens"])[420:423] == ["foo bar", "  ", " the"]
        ids = load_tokenizer(file).encode("a foo bar b  the")
        assert 420 in ids and ids == load_tokenizer(tmp_path / "back").encode("a foo bar b  the")


def test_verify_detects_changed_token_ids(tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": false}')
    text = conversion_notes(source, tmp_path / "meta", to="meta", verify=True)
    assert "encodes a sample text to ids that differ" in text


def test_a_chat_template_that_metas_layout_cannot_hold_is_noted(tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf")
    config = {"tokenizer_class": "LlamaTokenizer", "chat_template": "{{ messages[0]['content'] }}"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    assert "Meta's layout cannot hold the chat template" in conversion_notes(source, tmp_path / "meta", to="meta")


@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_an_embedding_is_not_truncated_below_the_tokenizers_tokens(to: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "hf", {"eos_token_id": [2, 427]}, vocab_size=430)
    with pytest.raises(CheckpointError, match="loses special token 427"):
        convert(source, tmp_path / "out", to=to, vocab_size=424)
    GenerationConfig(eos_token_id=2).save_pretrained(source)
    with pytest.raises(TokenizerError, match="420 tokens and the embedding 419 rows"):
        convert(source, tmp_path / "out", to=to, vocab_size=419)
    convert(source, tmp_path / "out", to=to, vocab_size=420)
    assert open_checkpoint(tmp_path / "out").config.vocab_size == 420


def test_sampling_settings_are_kept_in_gguf_files(tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.25, "eos_token_id": 2}
    source = write_model(tmp_path / "hf", settings)
    assert "generation_config" not in conversion_notes(source, tmp_path / "m.gguf", to="gguf")
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    sampling = {key.removeprefix("general.sampling."): metadata[key] for key in metadata if ".sampling." in key}
    assert sampling == pytest.approx(
        {"temp": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.0, "penalty_repeat": 1.25, "penalty_last_n": -1}
    )
    conversion_notes(tmp_path / "m.gguf", tmp_path / "copy.gguf", to="gguf")
    conversion_notes(tmp_path / "m.gguf", tmp_path / "back", to="hf")
    expected = GenerationDefaults.of(GenerationConfig.from_pretrained(source))
    for path in ("m.gguf", "copy.gguf", "back"):
        generation = open_checkpoint(tmp_path / path).generation
        assert GenerationDefaults.of(generation) == expected and generation_notes(generation) == []
    conversion_notes(write_model(tmp_path / "greedy", {"top_k": 3}), tmp_path / "greedy.gguf", to="gguf")
    assert not any(".sampling." in key for key in open_gguf(tmp_path / "greedy.gguf").metadata)
