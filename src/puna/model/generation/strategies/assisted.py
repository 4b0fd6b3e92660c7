"""Assisted generation: candidate tokens are verified in one forward pass; those that the model would choose are kept.

Greedy tokens are those of greedy search. Drawn tokens have the distribution of sampling: a candidate that was drawn
from an assistant's distribution is accepted or replaced by speculative sampling (arXiv:2211.17192, algorithm 1).

Legend: T tokens so far, C candidates, V vocabulary. There is one row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.generation.loop import Decoding, Forward, TorchForward, check_scores
from puna.model.generation.native.choice import choose_forward
from puna.model.generation.outputs import GenerateDecoderOnlyOutput
from puna.model.generation.processors.build import last_processors
from puna.model.generation.prompt import Prompt
from puna.model.generation.settings import is_random
from puna.model.generation.strategies.candidates import (
    AssistantCandidates,
    Candidates,
    DraftSettings,
    PromptLookup,
    TranslatedCandidates,
)
from puna.model.generation.strategies.foreign_assistant import ForeignForward, assistant_settings, is_foreign_model
from puna.model.generation.strategies.sampling import draw
from puna.model.outputs import CausalLMOutputWithPast


def assisted_decoding(decoding: Decoding) -> GenerateDecoderOnlyOutput:
    """Continues the prompt, greedily or by sampling, with candidates from the source that the settings select."""
    _check(decoding)
    ids, mask, cache = decoding.prompt.ids, decoding.prompt.mask, decoding.prompt.cache
    last = ids.shape[1] + decoding.limit
    source, finish = candidate_source(decoding)
    if decoding.streamer is not None:
        decoding.streamer.put(ids.cpu())
    ended = decoding.limit == 0
    while not ended:
        decoding.all_finished(False)
        candidates, drawn_from = source.propose(ids, last - ids.shape[1] - 1)
        text = torch.cat((ids, candidates), dim=1)
        out = _forward(decoding, text, _extend(mask, candidates.shape[1]), cache, candidates.shape[1] + 1)
        assert out.logits is not None
        logits = out.logits.float()  # (1, C + 1, V)
        scores = _process(decoding, text, logits)
        tokens, accepted = verify(candidates, drawn_from, scores, decoding)
        tokens, ended = _until_end(decoding, ids, tokens[:, : last - ids.shape[1]], scores)
        _record(decoding, ids.shape[1], tokens.shape[1], scores, logits, out)
        ids, mask = torch.cat((ids, tokens), dim=1), _extend(mask, tokens.shape[1])
        cache = decoding.runner.crop(out.past_key_values, mask.shape[1] - 1)  # the last token is not cached yet
        source.update(candidates.shape[1], min(accepted, tokens.shape[1] - 1))
        ended = ended or ids.shape[1] >= last
        if decoding.streamer is not None:
            decoding.streamer.put(tokens.cpu())
    decoding.wait_for_others(ids, mask, cache)
    if decoding.streamer is not None:
        decoding.streamer.end()
    finish()
    return decoding.output(ids, cache)


def _check(decoding: Decoding) -> None:
    settings, rows = decoding.settings, len(decoding.prompt.ids)
    if settings.num_return_sequences > 1:
        raise RequestError(f"num_return_sequences is {settings.num_return_sequences}; assisted generation needs 1")
    if rows > 1:
        raise RequestError(f"the batch has {rows} rows; assisted generation needs one prompt at a time")
    if not settings.use_cache:
        raise RequestError("use_cache is False; assisted generation needs use_cache=True")
    if not decoding.prompt.ids.shape[1]:
        raise RequestError("the prompt consists of inputs_embeds; assisted generation needs its ids")


def verify(candidates: Tensor, drawn_from: Tensor | None, scores: Tensor, decoding: Decoding) -> tuple[Tensor, int]:
    """Returns the tokens of the model: the accepted candidates and one more token, (1, accepted + 1).

    Args:
        candidates: (1, C).
        drawn_from: (1, C, V), the scores that the candidates were drawn from; None if they were not drawn.
        scores: (1, C + 1, V), the scores of the model for the candidates and the token after them.
        decoding: whether to draw, and the random generator.
    """
    if is_random(decoding.settings) and drawn_from is not None:
        return speculative_sampling(candidates, drawn_from, scores, decoding.generator)
    if is_random(decoding.settings):
        tokens = torch.multinomial(scores[0].softmax(dim=-1), 1, generator=decoding.generator).T
    else:
        tokens = scores.argmax(dim=-1)
    accepted = _matching(candidates[0] == tokens[0, :-1])
    return tokens[:, : accepted + 1], accepted


def speculative_sampling(
    candidates: Tensor, drawn_from: Tensor, scores: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, int]:
    """Accepts a candidate with probability p / q, and draws from max(p - q, 0) in place of the first rejected one.

    p is the model's and q the assistant's probability of the candidate. The tokens have the distribution of the model.

    Args:
        candidates, drawn_from, scores: as in `verify`.
        generator: the random generator; None for PyTorch's global one.

    Returns:
        The accepted candidates and one more token, (1, accepted + 1), and the number of accepted candidates.
    """
    model, assistant = scores[0].softmax(dim=-1), drawn_from[0].softmax(dim=-1)  # (C + 1, V), (C, V)
    count = candidates.shape[1]
    index = torch.arange(count, device=candidates.device)
    ratio = model[index, candidates[0]] / assistant[index, candidates[0]]
    random = torch.rand(ratio.shape, device=ratio.device, dtype=ratio.dtype, generator=generator)
    accepted = _matching(random <= ratio)
    remainder = model[accepted]
    if accepted < count:
        difference = (remainder - assistant[accepted]).clamp(min=0)
        # Zero up to rounding if both distributions are equal; the candidate is then rejected only by rounding.
        remainder = difference / difference.sum() if difference.sum() > 0 else remainder
    token = torch.multinomial(remainder, 1, generator=generator)
    return torch.cat((candidates[:, :accepted], token[None]), dim=1), accepted


def _matching(correct: Tensor) -> int:
    """Returns the number of candidates before the first wrong one, given which are correct, (C,)."""
    return int(correct.long().cumprod(dim=0).sum())


def _process(decoding: Decoding, text: Tensor, logits: Tensor) -> Tensor:
    """Returns the scores of the candidates and the token after them, (1, C + 1, V), after all processors."""
    first = text.shape[1] - logits.shape[1] + 1
    scores = [decoding.process(text[:, : first + index], logits[:, index]) for index in range(logits.shape[1])]
    unfinished = torch.ones(1, dtype=torch.bool, device=text.device)
    for index, position in enumerate(scores):
        check_scores(position, logits[:, index], unfinished, is_random(decoding.settings))
    return torch.stack(scores, dim=1)


def _until_end(decoding: Decoding, ids: Tensor, tokens: Tensor, scores: Tensor) -> tuple[Tensor, bool]:
    """Returns the tokens up to the first one that ends the text, and whether there is such a token."""
    for index in range(tokens.shape[1]):
        if decoding.ended(torch.cat((ids, tokens[:, : index + 1]), dim=1), scores[:, index]).all():
            return tokens[:, : index + 1], True
    return tokens, False


def _record(
    decoding: Decoding, length: int, count: int, scores: Tensor, logits: Tensor, out: CausalLMOutputWithPast
) -> None:
    """Collects the optional outputs of `count` new tokens as if each had been computed in its own forward pass.

    The outputs of the first forward pass also have a row for each token of the prompt; the first new token keeps them.
    """
    layers = out.hidden_states or out.attentions
    rows = layers[0].shape[-2] if layers else logits.shape[1]
    for index in range(count):
        end = rows - logits.shape[1] + index + 1
        start = 0 if index == 0 else end - 1
        keys = length + index
        single = CausalLMOutputWithPast(
            hidden_states=None if out.hidden_states is None else tuple(s[:, start:end] for s in out.hidden_states),
            attentions=None if out.attentions is None else tuple(a[:, :, start:end, :keys] for a in out.attentions),
        )
        decoding.record(scores[:, index], logits[:, index], single)


def _forward(decoding: Decoding, ids: Tensor, mask: Tensor, cache: Any, keep: int) -> CausalLMOutputWithPast:
    return decoding.runner.forward(
        ids, mask, cache, keep,
        attentions=decoding.requests("attentions"), hidden_states=decoding.requests("hidden_states"),
    )  # fmt: skip


def _extend(mask: Tensor, columns: int) -> Tensor:
    return torch.cat((mask, mask.new_ones((1, columns))), dim=1)


def candidate_source(decoding: Decoding) -> tuple[Candidates, Callable[[], None]]:
    """Returns the source of candidates, and a function to call at the end.

    Raises:
        RequestError: if the assistant has another vocabulary.
    """
    settings = decoding.settings
    if settings.assistant_early_exit is None and settings.prompt_lookup_num_tokens is not None:
        lookup = PromptLookup(
            settings.prompt_lookup_num_tokens,
            settings.max_matching_ngram_size or 2,
            settings.eos_token_ids,
            decoding.model.config.vocab_size,
            decoding.process,
        )
        return lookup, lambda: None
    if settings.assistant_early_exit is not None:
        early = early_exit_model(decoding.model, settings.assistant_early_exit)
        return _assistant_source(decoding, early, TorchForward(early, decoding.prompt))
    assistant, vocabulary = decoding.assistant, decoding.model.config.vocab_size
    assert assistant is not None
    if None not in decoding.tokenizers:
        words = torch.ones_like(decoding.prompt.ids[:, :1])
        forward = _assistant_forward(decoding, assistant, Prompt(words, None, words, None))
        source, finish = _assistant_source(decoding, assistant, forward, translated=True)
        return TranslatedCandidates(source, *decoding.tokenizers), finish
    if assistant.config.vocab_size != vocabulary:
        raise RequestError(
            f"the assistant's vocabulary has {assistant.config.vocab_size} tokens and the model's {vocabulary}; use an "
            "assistant with the same tokenizer, or pass tokenizer and assistant_tokenizer"
        )
    return _assistant_source(decoding, assistant, _assistant_forward(decoding, assistant, decoding.prompt))


def _assistant_forward(decoding: Decoding, assistant: Any, prompt: Prompt) -> Forward:
    """Returns the forward pass of the assistant, whose cache is empty at first."""
    if is_foreign_model(assistant):
        return ForeignForward(assistant)
    own = Prompt(prompt.ids, None, prompt.mask[:, -prompt.ids.shape[1] :], None)
    forward, _ = choose_forward(assistant, decoding.settings, own, decoding.limit)
    return forward


def _assistant_source(
    decoding: Decoding, assistant: Any, forward: Forward, translated: bool = False
) -> tuple[AssistantCandidates, Callable[[], None]]:
    """Returns the drafts of an assistant, and the function that stores an adapted length in its configuration.

    Settings of the call that differ from the defaults replace those of the assistant.

    Args:
        decoding: the call.
        assistant: the model.
        forward: its forward pass.
        translated: whether the assistant has another vocabulary, for which the processors have no meaning.
    """
    names = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
    defaults, own = GenerationConfig(), assistant_settings(assistant)
    tokens, schedule, threshold = (
        getattr(decoding.settings if getattr(decoding.settings, name) != getattr(defaults, name) else own, name)
        for name in names
    )
    ends = own.eos_token_ids if translated else decoding.settings.eos_token_ids
    draft = DraftSettings(tokens, schedule in ("heuristic", "heuristic_transient"), threshold or None, ends)
    ids, mask = decoding.prompt.ids, decoding.prompt.mask[:, -decoding.prompt.ids.shape[1] :]
    mask = (torch.ones_like(ids[:, :1]) if translated else mask).to(assistant.device)
    choose = draw(decoding) if is_random(decoding.settings) else None

    def store_length() -> None:
        if schedule == "heuristic":
            assistant.generation_config.num_assistant_tokens = draft.tokens

    process = _unchanged if translated else _draft_process(decoding)
    return AssistantCandidates(forward, mask, draft, process, choose), store_length


def _draft_process(decoding: Decoding) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the function that changes the assistant's logits.

    The last processors are applied twice, as in transformers, so that the same tokens are drawn for a seed. The
    distribution of the answers does not depend on that of the drafts.
    """
    last = last_processors(decoding.settings, decoding.model.config.vocab_size, decoding.prompt.ids.device)
    return lambda ids, logits: last(ids, decoding.process(ids, logits))


def _unchanged(ids: Tensor, logits: Tensor) -> Tensor:
    return logits


def early_exit_model(model: Any, layers: int) -> Any:
    """Returns a model of the first layers of `model`, with its final norm and head; it shares their weights.

    Raises:
        RequestError: if `model` does not have as many layers.
    """
    count = model.config.num_hidden_layers
    if not 0 < layers < count:
        raise RequestError(f"assistant_early_exit is {layers}; it must be from 1 to {count - 1}, the model's layers")
    early, decoder = copy.copy(model), copy.copy(model.get_decoder())
    config = copy.copy(model.config)
    config.num_hidden_layers = layers
    for module in (early, decoder):
        module.__dict__.pop("forward", None)  # a replaced method, such as one with hooks, calls the complete model
        module._modules = dict(module._modules)
        module.config = config
    decoder._modules["layers"] = nn.ModuleList(decoder.layers[:layers])
    early.set_decoder(decoder)
    return early
