"""`generate(custom_generate=function)`: the function receives what it receives from transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from puna.errors import RequestError
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

IDS = torch.randint(3, 67, (2, 6), generator=torch.Generator().manual_seed(3))
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 7, "pad_token_id": 0, "eos_token_id": list(range(20, 30)), "do_sample": False,
    "repetition_penalty": 1.3,
}  # fmt: skip


def second_best(
    model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
    rank: int = 1, **inputs: Any,
) -> tuple[Tensor, int, float]:  # fmt: skip
    """A loop that chooses the token of a rank, as public recipes do."""
    unfinished = torch.ones(len(input_ids), dtype=torch.bool)
    while unfinished.any():
        scores = logits_processor(input_ids, model(input_ids).logits[:, -1].float())
        token = scores.topk(rank + 1).indices[:, rank].where(unfinished, torch.tensor(0))
        input_ids = torch.cat((input_ids, token[:, None]), dim=1)
        unfinished = unfinished & ~stopping_criteria(input_ids, None)
    return input_ids, generation_config.max_length, generation_config.repetition_penalty


@pytest.mark.parametrize("more", [{}, {"rank": 2}, {"num_return_sequences": 2, "do_sample": True, "top_k": 5}])
def test_results_are_those_of_transformers(more: dict[str, Any]) -> None:
    results = [
        model.generate(IDS, attention_mask=torch.ones_like(IDS), custom_generate=second_best, **OPTIONS | more)
        for model in pair(config_of(initializer_range=0.12), seed=4)
    ]
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:] == (13, 1.3)


def test_the_function_receives_the_inputs_of_the_model_and_the_objects_that_it_names() -> None:
    model = pair(config_of())[0]
    calls: list[dict[str, Any]] = []

    def loop(model: Any, input_ids: Tensor, tokenizer: Any = None, **inputs: Any) -> str:
        assert not torch.is_grad_enabled()
        calls.append({"ids": input_ids, "tokenizer": tokenizer, **inputs})
        return "result"

    class Words:
        def decode(self, ids: Any) -> str:
            return ""

    words, mask = Words(), torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
    options: dict[str, Any] = {"custom_generate": loop, "max_new_tokens": 2, "pad_token_id": 0}
    assert model.generate(IDS, attention_mask=mask, tokenizer=words, use_cache=False, **options) == "result"
    assert torch.equal(calls[0]["attention_mask"], mask)
    assert torch.equal(calls[0]["ids"], IDS)
    assert calls[0]["tokenizer"] is words
    assert (calls[0]["use_cache"], calls[0]["logits_to_keep"]) == (False, 1)
    with pytest.raises(RequestError, match="no argument 'rnak'"):
        model.generate(IDS, custom_generate=second_best, rnak=2)
    with pytest.raises(RequestError, match="Code of other repositories is not run"):
        model.generate(IDS, custom_generate="owner/name")
    with pytest.raises(RequestError, match="has no signature"):
        model.generate(IDS, custom_generate=max)
