"""Names that code written for transformers imports: puna's own, those of transformers, and errors with a remedy."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

import puna
from puna.errors import PunaError, RequestError
from puna.names import OF_TRANSFORMERS, WITHOUT_COUNTERPART
from tests.golden.files import LAYOUTS

IDS = torch.tensor([[1, 5, 6, 7]])


@pytest.fixture(scope="module")
def model() -> Any:
    return puna.LlamaForCausalLM.from_pretrained(LAYOUTS["hf"])


def test_names_of_transformers_are_its_own_objects() -> None:
    absent = []
    for name in OF_TRANSFORMERS:
        if hasattr(transformers, name):
            assert getattr(puna, name) is getattr(transformers, name)
        else:
            absent.append(name)
            with pytest.raises(PunaError, match="the installed release has no such name"):
                getattr(puna, name)
    assert set(absent) <= {"AdamW", "Conversation", "ConversationalPipeline", "is_tokenizers_available",
                           "is_flash_attn_2_available", "PaddingStrategy", "TensorType"}  # fmt: skip
    assert not set(OF_TRANSFORMERS) & {*puna.__all__, *WITHOUT_COUNTERPART}


@pytest.mark.parametrize("name", WITHOUT_COUNTERPART)
def test_names_without_a_counterpart_are_errors_with_a_remedy(name: str) -> None:
    assert not hasattr(puna, name)
    with pytest.raises(ImportError, match=f"puna.{name}: .*(use|LLaMA|puna has)"):
        exec(f"from puna import {name}")


def test_without_transformers_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["transformers"] = None
import puna
assert not hasattr(puna, "Trainer")
from puna import PreTrainedModel, DynamicCache, CompileConfig, logging
from puna import DataCollatorWithPadding
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "puna.DataCollatorWithPadding is a data collator of transformers; install it with" in run.stderr


def test_base_classes_have_the_names_of_transformers(model: Any) -> None:
    tokenizer = puna.AutoTokenizer.from_pretrained(LAYOUTS["hf"])
    assert isinstance(model, puna.PreTrainedModel) and isinstance(tokenizer, puna.PreTrainedTokenizerBase)
    assert isinstance(tokenizer, puna.PreTrainedTokenizerFast) and issubclass(puna.LlamaConfig, puna.PreTrainedConfig)


def test_data_collators_work_with_the_tokenizers() -> None:
    tokenizer = puna.AutoTokenizer.from_pretrained(LAYOUTS["hf"], pad_token="</s>", padding_side="left")
    rows = [tokenizer(text) for text in ("a", "the llama")]
    batch = puna.DataCollatorWithPadding(tokenizer)(rows)
    width = len(rows[1]["input_ids"])
    assert batch["input_ids"].tolist() == [[2] * (width - len(r["input_ids"])) + r["input_ids"] for r in rows]
    labels = puna.DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"]
    assert labels[0, 0] == -100 and labels[1].tolist() == rows[1]["input_ids"]


def test_a_dynamic_cache_has_the_operations_of_transformers() -> None:
    caches: list[Any] = [puna.DynamicCache(), transformers.DynamicCache()]
    torch.manual_seed(0)
    states = [torch.rand(2, 2, 3, 2, 4) for _ in range(3)]  # keys and values: B=2, K=3, S=2, E=4

    def keys(cache: Any) -> Any:
        return [layer.keys for layer in cache.layers]

    def check(operation: Any) -> None:
        for cache in caches:
            operation(cache)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*map(keys, caches), strict=True))
        assert caches[0].get_seq_length() == caches[1].get_seq_length()

    for layer in (0, 1, 0, 1):
        check(lambda cache: cache.update(*states[layer], layer))  # noqa: B023
    assert caches[0].get_max_cache_shape() == -1
    for operation in (
        lambda cache: cache.crop(-1),
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0, 3])),
    ):
        check(operation)
    again = puna.DynamicCache.from_legacy_cache(caches[0].to_legacy_cache())
    assert torch.equal(again.key_cache[1], caches[0].layers[1].keys) and len(again) == 2
    again.crop(2)  # as in transformers 4; 5.23 accepts only negative numbers
    assert torch.equal(again.key_cache[1], caches[0].layers[1].keys[..., :2, :])
    again.reset()
    assert (len(again), again.get_seq_length(), again.seen_tokens, again.get_max_length()) == (0, 0, 0, None)


@pytest.mark.parametrize("kind", [puna.DynamicCache, lambda: puna.StaticCache(max_cache_len=20)])
def test_a_cache_object_is_extended_by_calls_and_by_generate(model: Any, kind: Any) -> None:
    expected = model(IDS).logits[:, -1]
    cache = kind()
    with torch.no_grad():
        first = model(IDS[:, :2], past_key_values=cache)
        second = model(IDS[:, 2:], past_key_values=cache)
    assert first.past_key_values is second.past_key_values is cache and cache.get_seq_length() == 4
    torch.testing.assert_close(second.logits[:, -1], expected)
    cache = kind()
    answer = model.generate(IDS, past_key_values=cache, max_new_tokens=3, pad_token_id=0)
    assert answer.tolist() == model.generate(IDS, max_new_tokens=3, pad_token_id=0).tolist()
    assert cache.get_seq_length() == 6


def test_a_static_cache_has_a_limit(model: Any) -> None:
    assert puna.StaticCache(model.config, 7).max_cache_len == 7, "the second argument in transformers 5"
    cache = puna.StaticCache(model.config, max_batch_size=1, max_cache_len=3)
    assert cache.get_max_length() == 3
    with pytest.raises(RequestError, match="the text has 4 tokens, and the cache max_cache_len=3"):
        model(IDS, past_key_values=cache)
    with pytest.raises(RequestError, match="max_cache_len is None"):
        puna.StaticCache(model.config)
    with pytest.raises(RequestError, match="offloading=True"):
        puna.DynamicCache(offloading=True)


def test_compile_config_has_the_fields_of_transformers() -> None:
    theirs = transformers.CompileConfig().to_dict()
    ours = puna.CompileConfig().to_dict()
    assert ours == {name: theirs[name] for name in ours} and puna.CompileConfig(dynamic=True).dynamic is True


def test_the_level_of_messages_can_be_set(caplog: pytest.LogCaptureFixture) -> None:
    level = puna.logging.get_logger().level
    try:
        puna.logging.set_verbosity_error()
        assert puna.logging.get_verbosity() == logging.ERROR
        puna.logging.get_logger("puna.tokenizer").warning("hidden")
        puna.logging.set_verbosity_info()
        puna.logging.get_logger("puna.tokenizer").info("shown")
        assert [record.message for record in caplog.records] == ["shown"]
    finally:
        puna.logging.get_logger().setLevel(level)
        transformers.logging.set_verbosity_warning()
    assert {"get_logger", "set_verbosity_error"} <= set(dir(transformers.logging)) & set(puna.logging.__all__)
