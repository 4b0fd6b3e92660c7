"""`model.generate()`: the plain decoding loop, with the arguments of Hugging Face's.

It is the readable twin of the engine's loop, and the way to generate on a GPU through PyTorch alone. A batch is a
rectangle padded on the left; rows that have ended are filled up while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.cache import KVCache, LegacyCache
from puna.model.outputs import CausalLMOutputWithPast, GenerateOutput
from puna.model.sampling import choose_token, forbid, penalise_repetition, samples, warp

if TYPE_CHECKING:
    from puna.model.causal_lm import LlamaForCausalLM

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""(ids (rows, tokens), logits (rows, vocab)) -> logits; runs after the penalties and before the temperature."""

StoppingCriterion = Callable[[Tensor, Any], "bool | Tensor"]
"""(ids (rows, tokens), logits (rows, vocab)) -> whether to stop: all rows (bool), or each, (rows,)."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None,),
    "begin_suppress_tokens": (None,),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "min_length": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "suppress_tokens": (None, []),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}
"""Settings of the reference that change a text and are not offered, with the values that switch them off."""


class Streamer(Protocol):
    """Receives the prompt and then each new token; transformers' streamers fit."""

    def put(self, value: Tensor) -> None:
        """Takes the prompt's ids, (rows, tokens), then one new id per row, (rows,); on the CPU."""

    def end(self) -> None:
        """Is told that the text has ended."""


@dataclass
class _Prompt:
    """What generation starts from, a row for each text to be written."""

    ids: Tensor  # (rows, tokens), int64; no tokens where only embeddings were given
    embeds: Tensor | None  # (rows, tokens, D)
    mask: Tensor  # (rows, cached + tokens)
    cache: LegacyCache | None


def generate(
    self: LlamaForCausalLM,
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
) -> Tensor | GenerateOutput:
    """Continues each row of the prompt, greedily or by sampling.

    Args:
        inputs: (B, T) ids of the prompt, also as `input_ids`; without any, the text starts from bos.
        generation_config: defaults for what follows; by default the model's own.
        logits_processor: functions that change the logits, after the penalties and before the temperature.
        stopping_criteria: functions that end all rows or some of them, asked after each token.
        streamer: receives prompt and tokens as they come, for one row.
        attention_mask: (B, T), 0 for padding, which must be on the left. By default, tokens equal to the pad token are
            padding, unless it is also an eos token. It may be longer than the ids by the tokens already cached.
        inputs_embeds: (B, T, D) in place of the ids; the result then holds the new tokens only.
        past_key_values: cache of the first tokens of `inputs`, or of tokens before them that the mask also covers.
        max_length: most tokens of prompt and answer; max_new_tokens: of the answer, and wins.
        min_new_tokens: tokens of the answer before which no eos is chosen.
        do_sample, temperature, top_k, top_p, min_p, repetition_penalty: as in `GenerationConfig`; temperature 0 takes
            the likeliest token.
        num_return_sequences: texts per row when sampling; they follow each other in the result.
        num_beams: only 1: there is no beam search.
        pad_token_id: fills ended rows (default: the configuration's, else the first eos); bos_token_id, eos_token_id.
        use_cache: keep keys and values between steps, instead of computing them again.
        output_scores, return_dict_in_generate: return a `GenerateOutput`, with the logits of each choice.
        seed: makes the draws repeatable; generator: draws from this one; without both, from PyTorch's global one.

    Returns:
        (B x num_return_sequences, tokens) ids of prompt and answer, padded on the right; or a `GenerateOutput`.

    Raises:
        RequestError: when an argument contradicts another, or asks for what is not offered.
        ConfigError: when a setting is out of range.
    """
    asked = {
        "max_length": max_length,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "num_return_sequences": num_return_sequences,
        "num_beams": num_beams,
        "pad_token_id": pad_token_id,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "use_cache": use_cache,
        "output_scores": output_scores,
        "return_dict_in_generate": return_dict_in_generate,
    }
    settings = _merge(generation_config or self.generation_config, asked)
    if inputs is not None and input_ids is not None:
        raise RequestError("the prompt was given twice, as inputs and as input_ids; keep one of them")
    ids = inputs if inputs is not None else input_ids
    prompt = _read_prompt(self, settings, ids, inputs_embeds, attention_mask, past_key_values)
    if seed is not None:
        if generator is not None:
            raise RequestError(f"seed {seed} and a generator were both given; keep one of them")
        generator = torch.Generator(self.device).manual_seed(seed)
    with torch.no_grad():
        out = _decode(self, prompt, settings, logits_processor or (), stopping_criteria or (), streamer, generator)
    return out if settings.return_dict_in_generate else out.sequences


def _merge(base: GenerationConfig, asked: dict[str, Any]) -> GenerationConfig:
    """The configuration with the call's arguments on top; refuses what is not offered."""
    given = {name: value for name, value in asked.items() if value is not None}
    fields = base.to_dict()
    if "max_length" in given and "max_new_tokens" not in given:
        fields.pop("max_new_tokens", None)
    settings = GenerationConfig.from_dict({**fields, **given})
    if settings.num_beams > 1:
        raise RequestError(f"num_beams is {settings.num_beams}; beam search is not offered, num_beams must be 1")
    if settings.num_return_sequences > 1 and not samples(settings):
        raise RequestError(
            f"num_return_sequences is {settings.num_return_sequences}, but greedy texts would all be the same; set "
            "do_sample=True and a temperature above 0"
        )
    for name, neutral in _NEUTRAL.items():
        if (value := settings.extra.get(name)) not in neutral:
            raise RequestError(
                f"the generation configuration sets {name} to {value!r}, which is not offered; remove it"
            )
    return settings


def _read_prompt(
    model: LlamaForCausalLM,
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
            raise RequestError("there is no prompt and no bos_token_id to start from; give one of them")
        ids = torch.tensor([[settings.bos_token_id]], device=model.device)
    if embeds is not None and not settings.use_cache:
        raise RequestError("inputs_embeds with use_cache=False is not offered; leave use_cache on")
    if ids is None:
        assert embeds is not None
        ids = embeds.new_zeros((embeds.shape[0], 0), dtype=torch.long)
    if mask is None:
        mask = _infer_mask(settings, ids, ids.shape[1] if embeds is None else embeds.shape[1])
    if mask.shape[0] != ids.shape[0] or mask.dim() != 2 or not mask[:, -1].all():
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)} and must be 2-D, one row for each of {ids.shape[0]} "
            "prompts, none ending in padding: pad on the left (padding_side='left')"
        )
    copies = settings.num_return_sequences
    rows = torch.arange(ids.shape[0], device=ids.device).repeat_interleave(copies)
    if cache and copies > 1:
        cache = (cache if isinstance(cache, KVCache) else KVCache(cache)).reorder(rows)
    return _Prompt(ids[rows], None if embeds is None else embeds[rows], mask.to(ids.device)[rows].long(), cache)


def _infer_mask(settings: GenerationConfig, ids: Tensor, tokens: int) -> Tensor:
    pad = settings.pad_token_id
    if pad is None or pad in settings.eos_token_ids or not ids.shape[1]:
        return ids.new_ones((ids.shape[0], tokens))
    return (ids != pad).long()


def _room(settings: GenerationConfig, tokens: int) -> int:
    """How many tokens may be added to a prompt of `tokens`."""
    if settings.max_new_tokens is not None:
        return settings.max_new_tokens
    if tokens >= settings.max_length:
        raise RequestError(
            f"the prompt has {tokens} tokens and max_length is {settings.max_length}; set max_new_tokens instead"
        )
    return settings.max_length - tokens


def _decode(
    model: LlamaForCausalLM,
    prompt: _Prompt,
    settings: GenerationConfig,
    processors: Sequence[LogitsProcessor],
    criteria: Sequence[StoppingCriterion],
    streamer: Streamer | None,
    generator: torch.Generator | None,
) -> GenerateOutput:
    ids, mask, cache = prompt.ids, prompt.mask, prompt.cache
    room = _room(settings, ids.shape[1])
    eos = settings.eos_token_ids
    filler = settings.pad_token_id if settings.pad_token_id is not None else (eos[0] if eos else 0)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    scores: list[Tensor] = []
    if streamer is not None:
        streamer.put(ids.cpu())
    for step in range(room):
        step_inputs = model.prepare_inputs_for_generation(ids, cache, mask, prompt.embeds, use_cache=settings.use_cache)
        out: CausalLMOutputWithPast = model(**step_inputs, return_dict=True, logits_to_keep=1)
        assert out.logits is not None
        logits = _adjust(out.logits[:, -1].float(), ids, step, settings, processors)
        cache = out.past_key_values
        if settings.output_scores:
            scores.append(logits)
        token = torch.where(going, choose_token(logits, settings, generator), filler)  # (rows,)
        ids = torch.cat((ids, token[:, None]), dim=1)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        if streamer is not None:
            streamer.put(token.cpu())
        going = going & ~_ended(ids, logits, eos, criteria)
        if not going.any():
            break
    if streamer is not None:
        streamer.end()
    kept = tuple(scores) if settings.output_scores else None
    return GenerateOutput(ids, kept, cache if isinstance(cache, KVCache) else None)


def _adjust(
    logits: Tensor, ids: Tensor, step: int, settings: GenerationConfig, processors: Sequence[LogitsProcessor]
) -> Tensor:
    """Penalties, the caller's processors, and what cuts the tail off."""
    if settings.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, ids, settings.repetition_penalty)
    if settings.min_new_tokens is not None and step < settings.min_new_tokens and settings.eos_token_ids:
        logits = forbid(logits, settings.eos_token_ids)
    for processor in processors:
        logits = processor(ids, logits)
    return warp(logits, settings) if samples(settings) else logits


def _ended(ids: Tensor, logits: Tensor, eos: tuple[int, ...], criteria: Sequence[StoppingCriterion]) -> Tensor:
    """Which rows end with their last token, (rows,)."""
    ended = torch.isin(ids[:, -1], torch.tensor(eos, device=ids.device, dtype=ids.dtype))
    for criterion in criteria:
        ended = ended | torch.as_tensor(criterion(ids, logits), device=ids.device)
    return ended
