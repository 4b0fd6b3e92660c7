"""Token healing compared with transformers, on the same weights and vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import puna
from puna.errors import RequestError
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

TEXT = ["the theatre is there, then they thank them", "a cat catches a catfish", "http https://example.com"] * 3
PROMPTS = [["The link is <a href=\"http"], ["a cat"], ["the th", "a c"], ["t"], ["x y z  "]]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Any, Any]:
    """The tokenizer of puna and that of transformers."""
    pipeline = Tokenizer(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet)
    pipeline.train_from_iterator(TEXT, trainer)
    names: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "padding_side": "left"}
    text = pipeline.to_str()
    ours = puna.LlamaTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), unk_token=None, add_bos_token=False, **names
    )
    return ours, transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **names)


@pytest.mark.parametrize("prompts", PROMPTS, ids=lambda prompts: prompts[0])
@pytest.mark.parametrize("eos", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_texts_are_those_of_transformers(tokenizers: tuple[Any, Any], prompts: list[str], eos: int, seed: int) -> None:
    config = config_of(
        vocab_size=len(tokenizers[0]), num_hidden_layers=2, pad_token_id=2, eos_token_id=eos, initializer_range=0.15
    )
    results = []
    for model, tokenizer in zip(pair(config, seed), tokenizers, strict=True):
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        healed = model.heal_tokens(inputs.input_ids, tokenizer)
        options: dict[str, Any] = {"max_new_tokens": 4, "pad_token_id": 2, "eos_token_id": [1], "do_sample": False}
        if prompts[0].endswith(" "):  # transformers keeps the mask of the longer prompt
            results.append(healed.tolist())
            continue
        out = model.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, token_healing=True, tokenizer=tokenizer, **options
        )
        results.append([healed.tolist(), out.tolist()])
    assert results[0] == results[1]


def test_white_space_at_the_end_is_dropped_and_only_ids_are_healed(tokenizers: tuple[Any, Any]) -> None:
    tokenizer = tokenizers[0]
    model = pair(config_of(vocab_size=len(tokenizer), num_hidden_layers=2, pad_token_id=2, initializer_range=0.15))[0]
    ids = tokenizer("a c", return_tensors="pt").input_ids
    assert tokenizer.decode(model.heal_tokens(ids, tokenizer)[0]).startswith("a c")
    longer = model.generate(tokenizer("a c  ", return_tensors="pt").input_ids, token_healing=True, tokenizer=tokenizer,
                            max_new_tokens=2, pad_token_id=2)  # fmt: skip
    assert longer.shape == (1, len(ids[0]) + 2)
    with pytest.raises(RequestError, match="needs the model's tokenizer"):
        model.heal_tokens(ids)
    with pytest.raises(RequestError, match="pass only ids"):
        model.generate(inputs_embeds=torch.zeros(1, 2, 48), token_healing=True, tokenizer=tokenizer)
