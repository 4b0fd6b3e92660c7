"""Contrastive search (arXiv:2202.06417): of the `top_k` most likely tokens, the one that is likely and repeats least.

A token is computed before it is chosen: the cosine between its hidden state and those of the tokens before it measures
repetition. Legend: B rows, K candidates, T tokens so far, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.loop import Decoding, check_scores
from puna.model.generation.outputs import GenerateDecoderOnlyOutput
from puna.model.outputs import CausalLMOutputWithPast


@dataclass
class _Text:
    """The text so far, and the last forward pass, which read all of it."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    states: Tensor  # (B, T, D), last hidden states
    out: CausalLMOutputWithPast


def contrastive_search(decoding: Decoding) -> GenerateDecoderOnlyOutput:
    """Continues each row of the prompt by contrastive search.

    With `low_memory`, the candidates are computed one after another instead of in one batch.
    """
    settings, prompt = decoding.settings, decoding.prompt
    if not settings.use_cache:
        raise RequestError("use_cache is False; contrastive search needs use_cache=True")
    if prompt.cache:
        raise RequestError(
            "past_key_values was given, but contrastive search needs the hidden states of all tokens; pass the "
            "complete prompt without past_key_values"
        )
    decoding.all_finished(False)
    out = _forward(decoding, prompt.ids, prompt.mask, None)
    text = _Text(prompt.ids, prompt.mask, _states(out), out)
    unfinished = torch.ones(len(prompt.ids), dtype=torch.bool, device=prompt.ids.device)
    if decoding.streamer is not None:
        decoding.streamer.put(prompt.ids.cpu())
    for _ in range(decoding.limit):
        decoding.all_finished(False)
        assert text.out.logits is not None
        logits = text.out.logits[:, -1].float()
        scores = decoding.process(text.ids, logits)
        decoding.record(scores, logits, text.out)
        check_scores(scores, logits, unfinished, random=False)
        text = _choose(decoding, text, scores)
        text.ids[:, -1] = text.ids[:, -1].where(unfinished, decoding.pad)
        if decoding.streamer is not None:
            decoding.streamer.put(text.ids[:, -1].cpu())
        unfinished = unfinished & ~decoding.ended(text.ids, scores)
        if not unfinished.any():
            break
    decoding.wait_for_others(text.ids, text.mask, None)
    if decoding.streamer is not None:
        decoding.streamer.end()
    return decoding.output(text.ids, text.out.past_key_values)


def _choose(decoding: Decoding, text: _Text, scores: Tensor) -> _Text:
    """Returns the text with one more token in each row, given the scores of the next token, (B, V)."""
    settings = decoding.settings
    assert settings.penalty_alpha is not None
    probabilities, tokens = scores.softmax(dim=-1).topk(min(settings.top_k, scores.shape[-1]), dim=-1)  # (B, K)
    look_ahead = _one_at_a_time if settings.low_memory else _all_at_once
    repetition, out = look_ahead(decoding, text, tokens)  # (B, K)
    best = ((1 - settings.penalty_alpha) * probabilities - settings.penalty_alpha * repetition).argmax(dim=-1)
    token = tokens.gather(1, best[:, None])  # (B, 1)
    ids, mask = _append(text, token)
    if out is None:
        out = _forward(decoding, ids, mask, text.out.past_key_values)
    else:
        rows = torch.arange(len(best), device=best.device) * settings.top_k + best
        out = _select(decoding, out, rows)
    return _Text(ids, mask, torch.cat((text.states, _states(out)), dim=1), out)


def _all_at_once(decoding: Decoding, text: _Text, tokens: Tensor) -> tuple[Tensor, CausalLMOutputWithPast]:
    """Computes all candidates, (B, K), in one forward pass; returns their repetition, (B, K), and its output."""
    batch, count = tokens.shape
    rows = torch.arange(batch, device=tokens.device).repeat_interleave(count)
    repeated = _Text(text.ids[rows], text.mask[rows], text.states, text.out)
    ids, mask = _append(repeated, tokens.reshape(-1, 1))
    out = _forward(decoding, ids, mask, decoding.runner.reorder(text.out.past_key_values, rows))
    return _repetition(text, _states(out).view(batch, count, -1)), out


def _one_at_a_time(decoding: Decoding, text: _Text, tokens: Tensor) -> tuple[Tensor, None]:
    """Computes each candidate in a separate forward pass, and keeps only its hidden state."""
    states = [
        _states(_forward(decoding, *_append(text, tokens[:, rank : rank + 1]), text.out.past_key_values))
        for rank in range(tokens.shape[1])
    ]
    return _repetition(text, torch.cat(states, dim=1)), None


def _repetition(text: _Text, states: Tensor) -> Tensor:
    """Returns the largest cosine between each candidate's hidden state, (B, K, D), and those of the text; (B, K)."""
    cosines = F.normalize(states, dim=-1) @ F.normalize(text.states, dim=-1).transpose(1, 2)  # (B, K, T)
    return cosines.masked_fill(text.mask[:, None] == 0, float("-inf")).amax(dim=-1)


def _append(text: _Text, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ids and mask of the text and one more token, (rows, 1)."""
    return torch.cat((text.ids, tokens), dim=1), torch.cat((text.mask, torch.ones_like(tokens)), dim=1)


def _forward(decoding: Decoding, ids: Tensor, mask: Tensor, cache: Any) -> CausalLMOutputWithPast:
    attentions = decoding.requests("attentions")
    return decoding.runner.forward(ids, mask, cache, attentions=attentions, hidden_states=True)


def _states(out: CausalLMOutputWithPast) -> Tensor:
    assert out.hidden_states is not None
    return out.hidden_states[-1]


def _select(decoding: Decoding, out: CausalLMOutputWithPast, rows: Tensor) -> CausalLMOutputWithPast:
    """Returns the rows of an output."""
    assert out.logits is not None and out.hidden_states is not None
    return CausalLMOutputWithPast(
        logits=out.logits[rows],
        past_key_values=decoding.runner.reorder(out.past_key_values, rows),
        hidden_states=tuple(layer[rows] for layer in out.hidden_states),
        attentions=None if out.attentions is None else tuple(layer[rows] for layer in out.attentions),
    )
