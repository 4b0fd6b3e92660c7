"""Token healing: the last token of a prompt is chosen again, so that a token of the answer may start inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.generation.prompt import Prompt

_BIAS, _OWN_BIAS = 10.0, 11.0
"""Added to the scores of all tokens that start with the last token; slightly more to the token itself."""


def heal_tokens(self: Any, input_ids: Tensor, tokenizer: Any = None) -> Tensor:
    """Replaces the last token of each prompt with the most likely token that starts with its text.

    Prompts are decoded, stripped of white space and encoded again; BOS becomes padding, as in transformers.

    Args:
        input_ids: (rows, tokens).
        tokenizer: the model's tokenizer, with a padding token.

    Returns:
        (rows, tokens) ids, padded on the side of the tokenizer.

    Raises:
        RequestError: there is no tokenizer, or it has no padding token.
    """
    if tokenizer is None:
        raise RequestError("token_healing needs the model's tokenizer; pass it as generate(tokenizer=...)")
    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    if pad is None:
        raise RequestError("token_healing needs a padding token; assign tokenizer.pad_token = tokenizer.eos_token")
    texts = [text.strip() for text in tokenizer.batch_decode(input_ids, skip_special_tokens=True)]
    ids: Tensor = tokenizer(texts, return_tensors="pt", padding=True).input_ids.to(input_ids.device).long()
    if bos is not None:
        ids = ids.masked_fill(ids == bos, pad)
    if not ids.numel():
        return ids
    vocabulary = tokenizer.get_vocab()
    for row in ids:
        count = int((row != pad).sum())
        last = int(row[-1])
        extensions = _extensions(tokenizer, vocabulary, last) if count else []
        if len(extensions) < 2 or len(row) < 2:
            continue
        start = row[:-1].clone()
        if count == 1 and bos is not None:
            start[-1] = bos
        bias = {(token,): _OWN_BIAS if token == last else _BIAS for token in extensions}
        settings = GenerationConfig(max_new_tokens=1, pad_token_id=pad, sequence_bias=bias)
        row.copy_(self.generate(start[None], generation_config=settings)[0])  # the mask follows from the padding
    return ids


def _extensions(tokenizer: Any, vocabulary: dict[str, int], token: int) -> Sequence[int]:
    """Returns the ids of all tokens that start with the text of one."""
    text, space = tokenizer.decode([token]), tokenizer.convert_tokens_to_ids(" ")
    if space is not None:
        text = text.replace(" ", tokenizer.convert_ids_to_tokens(space)[0])
    return [index for other, index in vocabulary.items() if other.startswith(text)]


def healed(model: Any, prompt: Prompt, tokenizer: Any) -> Prompt:
    """Returns the prompt with healed tokens. The mask is kept if the number of tokens has not changed.

    Raises:
        RequestError: the prompt has embeddings, positions or a cache.
    """
    if prompt.embeds is not None or prompt.cache is not None or prompt.positions is not None:
        raise RequestError("token_healing replaces the ids of the prompt; pass only ids, and no past_key_values")
    ids = heal_tokens(model, prompt.ids, tokenizer)
    same = ids.shape == prompt.mask.shape
    return replace(prompt, ids=ids, mask=prompt.mask if same else (ids != tokenizer.pad_token_id).long())
