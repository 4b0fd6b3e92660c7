"""`model.generate()`: a plain decoding loop in PyTorch, with the arguments of Hugging Face's method.

The loop does not use the engine. Prompts are padded on the left to the same length; rows that have ended are filled
with the padding token until all rows have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import RequestError
from puna.model.cache import KVCache, LegacyCache
from puna.model.checks import check_embeddings, check_ids
from puna.model.generation.settings import choose_generator, merge_settings
from puna.model.outputs import CausalLMOutputWithPast, GenerateOutput
from puna.model.sampling import choose_token, forbid, is_random, penalise_repetition, warp

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""(ids (rows, tokens), logits (rows, vocab)) -> logits; called after the penalties and before the temperature."""

StoppingCriterion = Callable[[Tensor, Any], "bool | Tensor"]
"""(ids (rows, tokens), logits (rows, vocab)) -> whether to stop: a bool for all rows, or one per row, (rows,)."""


class LanguageModel(Protocol):
    """The part of `LlamaForCausalLM` that the loop uses, because it cannot import the class."""

    config: LlamaConfig
    generation_config: GenerationConfig

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: LegacyCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> dict[str, Any]:
        """Returns the arguments of the next call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes the logits."""


class Streamer(Protocol):
    """Receives the prompt and then each new token. transformers' streamers have this interface."""

    def put(self, value: Tensor) -> None:
        """Receives the prompt's ids, (rows, tokens), then one new id per row, (rows,); on the CPU."""

    def end(self) -> None:
        """Called when the text has ended."""


@dataclass
class _Prompt:
    """The prompt, with one row for each text to generate."""

    ids: Tensor  # (rows, tokens), int64; (rows, 0) if only embeddings were given
    embeds: Tensor | None  # (rows, tokens, D)
    mask: Tensor  # (rows, cached + tokens)
    cache: LegacyCache | None


def generate(
    self: LanguageModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[LogitsProcessor] | None = None,
    stopping_criteria: Sequence[StoppingCriterion] | None = None,
    streamer: Streamer | None = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: LegacyCache | None = None,
    max_length: int | None = None,
    max_new_tokens: int | None = None,
    min_new_tokens: int | None = None,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    num_return_sequences: int | None = None,
    num_beams: int | None = None,
    pad_token_id: int | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    use_cache: bool | None = None,
    output_scores: bool | None = None,
    return_dict_in_generate: bool | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    **others: Any,
) -> Tensor | GenerateOutput:
    """Continues each row of the prompt, greedily or by sampling.

    Args:
        inputs: (B, T) ids of the prompt; `input_ids` is an alias. Without a prompt, the text starts with bos.
        generation_config: settings used where no argument is given; by default the model's configuration.
        logits_processor: functions that change the logits, called after the penalties and before the temperature.
        stopping_criteria: functions that return which rows have ended, called after each token.
        streamer: receives the prompt and each token; transformers' streamers accept only one row.
        attention_mask: (B, T), 0 for padding, which must be on the left. By default, tokens equal to the pad token are
            padding, unless it is also an eos token. Cached tokens that are not in `inputs` need columns here, too.
        inputs_embeds: (B, T, D) in place of the ids; the result then contains only the new tokens.
        past_key_values: cache of the first tokens of `inputs`, or of earlier tokens, which the mask must then cover.
        max_length: maximum tokens of prompt plus answer; max_new_tokens limits only the answer and takes precedence.
        min_new_tokens: minimum tokens in the answer; eos tokens are forbidden until then.
        do_sample, temperature, top_k, top_p, min_p, repetition_penalty: as in `GenerationConfig`.
        num_return_sequences: number of texts per prompt (above 1 only with sampling), adjacent in the result.
        num_beams: must be 1, since beam search is not supported.
        pad_token_id: fills rows that have ended (default: first eos); bos_token_id, eos_token_id: start and end a text.
        use_cache: keep keys and values between steps instead of computing them again.
        return_dict_in_generate: return a `GenerateOutput`; output_scores: include the logits of each choice.
        seed: makes sampling repeatable; generator: random generator; without both, PyTorch's global one is used.
        others: arguments of transformers that are not supported; only values that disable them are accepted.

    Returns:
        (B x num_return_sequences, tokens) ids of prompt and answer, padded on the right; or a `GenerateOutput`.

    Raises:
        RequestError: if arguments contradict each other or are not supported.
        ConfigError: if a setting is out of range.
    """
    arguments = {
        "max_length": max_length, "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens,
        "do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "num_return_sequences": num_return_sequences, "num_beams": num_beams,
        "pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id,
        "use_cache": use_cache, "output_scores": output_scores, "return_dict_in_generate": return_dict_in_generate,
    }  # fmt: skip
    settings = merge_settings(generation_config or self.generation_config, arguments, others)
    if inputs is not None and input_ids is not None:
        raise RequestError("the prompt was given twice, as inputs and as input_ids; keep one of them")
    ids = inputs if inputs is not None else input_ids
    prompt = _read_prompt(self, settings, ids, inputs_embeds, attention_mask, past_key_values)
    generator = choose_generator(seed, generator, self.device)
    with torch.no_grad():
        out = _decode(self, prompt, settings, logits_processor or (), stopping_criteria or (), streamer, generator)
    return out if settings.return_dict_in_generate else out.sequences


def _read_prompt(
    model: LanguageModel,
    settings: GenerationConfig,
    ids: Tensor | None,
    embeds: Tensor | None,
    mask: Tensor | None,
    cache: LegacyCache | None,
) -> _Prompt:
    if ids is not None and embeds is not None:
        raise RequestError("the prompt was given twice, as ids and as inputs_embeds; keep one of them")
    if ids is None and embeds is None:
        if settings.bos_token_id is None:
            raise RequestError("there is neither a prompt nor a bos_token_id to start from; give one of them")
        ids = torch.tensor([[settings.bos_token_id]], device=model.device)
    if embeds is not None:
        check_embeddings(embeds, model.config.hidden_size)
        if not settings.use_cache:
            raise RequestError("inputs_embeds with use_cache=False is not supported; set use_cache=True")
        ids, tokens = embeds.new_zeros((embeds.shape[0], 0), dtype=torch.long), embeds.shape[1]
    else:
        assert ids is not None
        check_ids(ids)
        tokens = ids.shape[1]
    if mask is None:
        mask = _infer_mask(settings, ids, tokens)
    _check_mask(mask, ids.shape[0], tokens, cache[0][0].shape[2] if cache else 0)
    copies = settings.num_return_sequences
    rows = torch.arange(ids.shape[0], device=ids.device).repeat_interleave(copies)
    if cache and copies > 1:
        cache = (cache if isinstance(cache, KVCache) else KVCache(cache)).reorder(rows)
    return _Prompt(ids[rows], None if embeds is None else embeds[rows], mask.to(ids.device)[rows].long(), cache)


def _check_mask(mask: Tensor, rows: int, tokens: int, past: int) -> None:
    """Raises RequestError unless the mask covers the prompt (or cached tokens, too) and no row ends in padding."""
    if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] not in (tokens, past + tokens):
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)}; it must be 2-D, a row for each of {rows} prompts and a "
            f"column for each of {tokens} tokens" + (f", or also for {past} cached tokens" if past else "")
        )
    if not mask[:, -1].all():
        raise RequestError("in attention_mask, a prompt ends in padding; pad on the left (padding_side='left')")


def _infer_mask(settings: GenerationConfig, ids: Tensor, tokens: int) -> Tensor:
    pad = settings.pad_token_id
    if pad is None or pad in settings.eos_token_ids or not ids.shape[1]:
        return ids.new_ones((ids.shape[0], tokens))
    mask: Tensor = (ids != pad).long()
    return mask


def _answer_limit(settings: GenerationConfig, tokens: int, total: int, context: int) -> int:
    """Returns the maximum number of tokens of the answer.

    `tokens` counts the ids of the prompt; `total` also counts embeddings and cached tokens.
    """
    if settings.max_new_tokens is not None:
        if total + settings.max_new_tokens > context:
            raise RequestError(
                f"{total} tokens and max_new_tokens {settings.max_new_tokens} exceed the model's context of "
                f"{context}; set max_new_tokens to {max(0, context - total)} or less"
            )
        return settings.max_new_tokens
    if settings.max_length > context:
        raise RequestError(f"max_length is {settings.max_length}; it must be at most the model's context, {context}")
    if tokens >= settings.max_length:
        raise RequestError(
            f"the prompt has {tokens} tokens and max_length is {settings.max_length}; set max_new_tokens instead"
        )
    return settings.max_length - tokens


def _decode(
    model: LanguageModel,
    prompt: _Prompt,
    settings: GenerationConfig,
    processors: Sequence[LogitsProcessor],
    criteria: Sequence[StoppingCriterion],
    streamer: Streamer | None,
    generator: torch.Generator | None,
) -> GenerateOutput:
    ids, mask, cache = prompt.ids, prompt.mask, prompt.cache
    limit = _answer_limit(settings, ids.shape[1], mask.shape[1], model.config.context_length)
    eos = settings.eos_token_ids
    pad = settings.pad_token_id if settings.pad_token_id is not None else (eos[0] if eos else 0)
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    scores: list[Tensor] = []
    padded = not bool(mask.all())
    if streamer is not None:
        streamer.put(ids.cpu())
    for step in range(limit):
        step_inputs = model.prepare_inputs_for_generation(ids, cache, mask, prompt.embeds, use_cache=settings.use_cache)
        if not padded:
            step_inputs["attention_mask"] = None  # plain causal order has faster kernels
        out: CausalLMOutputWithPast = model(**step_inputs, return_dict=True, logits_to_keep=1)
        assert out.logits is not None
        logits = _adjust(out.logits[:, -1].float(), ids, step, settings, processors)
        cache = out.past_key_values
        if settings.output_scores:
            scores.append(logits)
        token = torch.where(unfinished, choose_token(logits, settings, generator), pad)  # (rows,)
        ids = torch.cat((ids, token[:, None]), dim=1)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        if streamer is not None:
            streamer.put(token.cpu())
        unfinished = unfinished & ~_ended_rows(ids, logits, eos, criteria)
        if not unfinished.any():
            break
    if streamer is not None:
        streamer.end()
    all_scores = tuple(scores) if settings.output_scores else None
    return GenerateOutput(ids, all_scores, cache if isinstance(cache, KVCache) else None)


def _adjust(
    logits: Tensor, ids: Tensor, step: int, settings: GenerationConfig, processors: Sequence[LogitsProcessor]
) -> Tensor:
    """Applies the penalties and the caller's processors; for sampling, also the temperature and filters."""
    if settings.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, ids, settings.repetition_penalty)
    if settings.min_new_tokens is not None and step < settings.min_new_tokens and settings.eos_token_ids:
        logits = forbid(logits, settings.eos_token_ids)
    for processor in processors:
        logits = processor(ids, logits)
    return warp(logits, settings) if is_random(settings) else logits


def _ended_rows(ids: Tensor, logits: Tensor, eos: tuple[int, ...], criteria: Sequence[StoppingCriterion]) -> Tensor:
    """Returns for each row whether its last token ends it: bool, (rows,)."""
    ended = torch.isin(ids[:, -1], torch.tensor(eos, device=ids.device, dtype=ids.dtype))
    for criterion in criteria:
        ended = ended | torch.as_tensor(criterion(ids, logits), device=ids.device)
    return ended
