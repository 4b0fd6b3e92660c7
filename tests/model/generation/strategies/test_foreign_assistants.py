"""Assisted generation with an assistant of transformers: the same tokens as with the same assistant of puna."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

PROMPT = torch.tensor([[5, 6, 7, 8, 5, 6]])
OPTIONS: dict[str, Any] = {"max_new_tokens": 14, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any, Any]:
    """A model and its assistant, of puna and then of transformers."""
    model, reference = pair(config_of(initializer_range=0.3))
    assistant, theirs = pair(config_of(initializer_range=0.3, num_hidden_layers=1), seed=0)
    return model, assistant, reference, theirs


@pytest.mark.parametrize("options", [{}, {"num_assistant_tokens": 3}, {"do_sample": True}], ids=str)
def test_tokens_and_passes_equal_those_with_an_assistant_of_puna(models: Any, options: dict[str, Any]) -> None:
    model, assistant, _, theirs = models
    results = []
    for each in (assistant, theirs):
        calls: list[int] = []
        handle = each.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        out = model.generate(PROMPT, **OPTIONS, **options, assistant_model=each)
        handle.remove()
        results.append((out.tolist(), len(calls)))
    assert results[0] == results[1]
    assert results[0][1] > 3


def test_padding_on_the_left_is_not_seen(models: Any) -> None:
    model, _, _, theirs = models
    padded, mask = torch.cat((torch.zeros(1, 3).long(), PROMPT), 1), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    result = model.generate(padded, attention_mask=mask, assistant_model=theirs, **OPTIONS)
    assert torch.equal(result[:, 3:], model.generate(PROMPT, **OPTIONS))


def test_another_architecture_assists_with_the_tokens_of_greedy_search(models: Any) -> None:
    model, _, reference, _ = models
    config = transformers.GPT2Config(vocab_size=model.config.vocab_size, n_embd=32, n_layer=1, n_head=2)
    assistant = transformers.GPT2LMHeadModel(config).eval()
    expected = reference.generate(PROMPT, do_sample=False, **OPTIONS)
    assert torch.equal(model.generate(PROMPT, **OPTIONS, assistant_model=assistant), expected)
