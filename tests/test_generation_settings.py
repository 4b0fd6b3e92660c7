"""`LLM`'s defaults: the generation settings of a model's files, on both backends."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gguf
import pytest

from puna import LLM
from puna.errors import RequestError
from tests.helpers.random_weights import random_state
from tests.helpers.tiny_checkpoints import tiny_config, write_gguf
from tests.helpers.torch_files import BACKENDS, needs_torch

backends = pytest.mark.parametrize("backend", BACKENDS)
PROMPT = "the llama"


@pytest.fixture
def with_settings(tiny_model: Path, tmp_path: Path):
    """Returns a function that loads the tiny model with a generation_config.json."""

    def load(settings: dict[str, Any], backend: str = "native", **config: Any) -> LLM:
        for file in tiny_model.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        fields = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(fields | config))
        return LLM(tmp_path, backend)

    return load


SAMPLED = {"do_sample": True, "temperature": 1.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
OPTIONS: dict[str, Any] = {name: value for name, value in SAMPLED.items() if name != "do_sample"}


@backends
def test_settings_of_the_file_equal_explicit_options(with_settings, tiny_model, backend):
    plain, llm = LLM(tiny_model, backend), with_settings(SAMPLED, backend)
    for seed in range(3):
        expected = plain.generate(PROMPT, max_tokens=30, seed=seed, **OPTIONS).ids
        assert llm.generate(PROMPT, max_tokens=30, seed=seed).ids == expected
        assert "".join(llm.stream(PROMPT, max_tokens=30, seed=seed)) == llm.tokenizer.decode(expected)
    messages = [{"role": "user", "content": PROMPT}]
    chat = plain.chat(messages, max_tokens=30, seed=1, **OPTIONS)
    assert llm.chat(messages, max_tokens=30, seed=1).ids == chat.ids


@needs_torch
def test_both_backends_sample_the_same_answers(with_settings):
    native, torch = (with_settings(SAMPLED, backend) for backend in ("native", "torch"))
    for seed in range(5):
        assert (
            native.generate(PROMPT, max_tokens=30, seed=seed).ids
            == torch.generate(PROMPT, max_tokens=30, seed=seed).ids
        )


@backends
def test_an_explicit_option_takes_precedence(with_settings, tiny_model, backend):
    plain, llm = LLM(tiny_model, backend), with_settings(SAMPLED, backend)
    for change in ({"temperature": 0.0}, {"top_k": 0}, {"top_p": 1.0}, {"repetition_penalty": 1.0}, {"top_k": 1}):
        expected = plain.generate(PROMPT, max_tokens=30, seed=4, **(OPTIONS | change)).ids
        assert llm.generate(PROMPT, max_tokens=30, seed=4, **change).ids == expected
    assert llm.generate(PROMPT, max_tokens=30, seed=4, temperature=None).ids == llm.generate(PROMPT, seed=4).ids[:30]


def test_without_do_sample_the_most_likely_token_is_chosen(with_settings, tiny_model):
    greedy = LLM(tiny_model).generate(PROMPT, max_tokens=30).ids
    assert with_settings({"temperature": 1.7, "top_p": 0.9}).generate(PROMPT, max_tokens=30).ids == greedy
    penalised = LLM(tiny_model).generate(PROMPT, max_tokens=30, repetition_penalty=1.5).ids
    assert with_settings({"repetition_penalty": 1.5}).generate(PROMPT, max_tokens=30).ids == penalised != greedy


def test_a_temperature_of_the_call_uses_the_filters_of_the_file(with_settings, tiny_model):
    llm = with_settings({"top_k": 3})
    expected = LLM(tiny_model).generate(PROMPT, max_tokens=30, temperature=1.5, top_k=3, seed=2).ids
    assert llm.generate(PROMPT, max_tokens=30, temperature=1.5, seed=2).ids == expected


def test_top_k_of_minus_one_means_all_tokens(with_settings, tiny_model):
    llm = with_settings({"top_k": -1, "temperature": 1.5, "do_sample": True})
    expected = LLM(tiny_model).generate(PROMPT, max_tokens=30, temperature=1.5, seed=2).ids
    assert llm.generate(PROMPT, max_tokens=30, seed=2).ids == expected


def test_stop_strings_of_the_file_end_an_answer(with_settings, tiny_model):
    text = LLM(tiny_model).generate(PROMPT, max_tokens=40).text
    stop = text[20:23]
    llm = with_settings({"stop_strings": [stop]})
    assert llm.generate(PROMPT, max_tokens=40).text == text[: text.index(stop)]
    assert llm.generate(PROMPT, max_tokens=40, stop=[]).text == text


@backends
@pytest.mark.parametrize(
    ("settings", "prompt", "expected"),
    [
        ({}, 100, 156),  # the rest of the context of 256 tokens
        ({}, 255, 1),
        ({}, 256, 0),
        ({"max_new_tokens": 7}, 100, 7),
        ({"max_new_tokens": 200}, 100, 156),
        ({"max_new_tokens": 200, "max_length": 110}, 100, 156),
        ({"max_length": 110}, 100, 10),
        ({"max_length": 110}, 200, 56),
    ],
)
def test_the_default_length_adapts_to_the_context(with_settings, backend, settings, prompt, expected):
    llm = with_settings(settings | {"eos_token_id": None}, backend, eos_token_id=None)
    llm._stop_ids = frozenset()  # the tokenizer's end token does not end the answer either
    assert len(llm.generate([5] * prompt).ids) == expected
    assert len(llm.generate([5] * prompt, max_tokens=None).ids) == 256 - prompt
    with pytest.raises(RequestError, match=f"max_tokens to {256 - prompt} or less"):
        llm.generate([5] * prompt, max_tokens=257 - prompt)


def test_the_default_length_is_256(with_settings):
    llm = with_settings({}, max_position_embeddings=1000, eos_token_id=None)
    llm._stop_ids = frozenset()
    assert len(llm.generate([5]).ids) == 256
    llm._engine.pool.pages = 2
    assert len(llm.generate([5]).ids) == 127


def test_a_single_warning_names_the_unsupported_settings(with_settings):
    llm = with_settings({"suppress_tokens": [11], "epsilon_cutoff": 0.5, "foo_penalty": 3, "min_length": 0})
    with pytest.warns(
        UserWarning, match=r"suppress_tokens \(\[11\]\), epsilon_cutoff \(0\.5\), foo_penalty \(3\)"
    ) as seen:
        llm.generate(PROMPT, max_tokens=1)
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.generate(PROMPT, max_tokens=1)
        with_settings({"epsilon_cutoff": 0.0, "suppress_tokens": None, "foo": None}).generate(PROMPT, max_tokens=1)


def test_typical_p_and_min_new_tokens_of_the_file_are_defaults(with_settings):
    llm = with_settings({"do_sample": True, "top_k": 0, "typical_p": 0.3, "min_new_tokens": 4})
    expected = llm.generate(PROMPT, max_tokens=9, temperature=1.0, typical_p=0.3, min_tokens=4, seed=5).ids
    assert llm.generate(PROMPT, max_tokens=9, seed=5).ids == expected
    assert llm.generate(PROMPT, max_tokens=9, seed=5, typical_p=1.0).ids != expected
    assert llm.generate(PROMPT, max_tokens=2, seed=5).ids == expected[:2]  # min_new_tokens is limited to max_tokens
    with pytest.raises(RequestError, match="min_tokens is 4, but max_tokens is 2"):
        llm.generate(PROMPT, max_tokens=2, min_tokens=4)


def test_min_new_tokens_forbids_end_tokens(with_settings):
    first = with_settings({}).generate(PROMPT, max_tokens=1).ids[0]
    assert with_settings({"eos_token_id": first}).generate(PROMPT, max_tokens=6).ids == ()
    assert len(with_settings({"eos_token_id": first, "min_new_tokens": 3}).generate(PROMPT, max_tokens=6).ids) >= 3


def test_sampling_settings_of_a_gguf_file_are_the_defaults(tmp_path):
    config = tiny_config(vocab_size=260)
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", *tokens],
        "tokenizer.ggml.scores": [0.0] * 260,
        "tokenizer.ggml.token_type": [2, 3, 3, 1] + [6] * 256,
    }
    sampling = {"temp": 1.5, "top_k": 5, "top_p": 0.95, "min_p": 0.05, "penalty_repeat": 1.1, "mirostat": 2}
    plain = write_gguf(tmp_path / "plain.gguf", config, random_state(config), gguf.GGMLQuantizationType.F32, keys)
    keys |= {f"general.sampling.{name}": value for name, value in sampling.items()}
    sampled = write_gguf(tmp_path / "sampled.gguf", config, random_state(config), gguf.GGMLQuantizationType.F32, keys)
    options: Any = {"temperature": 1.5, "top_k": 5, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
    expected = LLM(plain).generate("a", max_tokens=40, seed=6, **options).ids
    llm = LLM(sampled)
    with pytest.warns(UserWarning, match=r"general\.sampling\.mirostat \(2\)"):
        assert llm.generate("a", max_tokens=40, seed=6).ids == expected
    assert len(set(expected)) > 3
