"""Builds the processors of a call of `generate()` from its settings, in the order of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.generation.merging import merge_lists
from puna.model.generation.processors.base import LogitsProcessorList, Processor
from puna.model.generation.processors.bias import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor
from puna.model.generation.processors.filters import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from puna.model.generation.processors.guidance import UnbatchedClassifierFreeGuidanceLogitsProcessor
from puna.model.generation.processors.lengths import (
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
)
from puna.model.generation.processors.repetition import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from puna.model.generation.processors.tokens import (
    AllowedTokens,
    ForceTokensLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from puna.model.generation.processors.values import (
    HammingDiversityLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
)
from puna.model.generation.processors.watermarks import watermark_processor
from puna.model.generation.settings import is_random


@dataclass(frozen=True)
class Context:
    """The facts about a call that processors need, in addition to its settings.

    Attributes:
        prompt_ids: (rows, tokens); (rows, 0) if the prompt consists of embeddings. One row for each text to generate.
        max_length: the maximum number of ids in a row, of prompt and answer.
        vocab_size: the model's vocabulary size.
        attention_mask: (rows, tokens), 0 for padding, which the repetition penalty ignores; columns of cached tokens
            that are not in `prompt_ids` may precede those of the prompt.
        model: computes the scores of negative prompts.
        negative_prompt_ids, negative_prompt_attention_mask: for `guidance_scale`.
        prefix_allowed_tokens_fn: returns the tokens that may follow.
    """

    prompt_ids: Tensor
    max_length: int
    vocab_size: int
    attention_mask: Tensor | None = None
    model: Any = None
    negative_prompt_ids: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    prefix_allowed_tokens_fn: AllowedTokens | None = None


def build_processors(
    settings: GenerationConfig, context: Context, custom: Sequence[Processor] = ()
) -> LogitsProcessorList:
    """Returns the processors of a call: those of the settings, then the caller's, then those for sampling.

    The caller's object replaces one of the same class that the settings require.

    Raises:
        RequestError: a setting is out of range, or needs another one that is missing.
    """
    built = [
        *_guidance(settings, context),
        *_repetition(settings, context),
        *_lengths(settings, context),
        *_tokens(settings, context),
    ]
    last = last_processors(settings, context.vocab_size, context.prompt_ids.device)
    return LogitsProcessorList([*merge_lists(built, custom), *last])


def last_processors(settings: GenerationConfig, vocab_size: int, device: Any) -> LogitsProcessorList:
    """Returns the processors that follow the caller's: for sampling, a watermark, and log-probabilities."""
    result = LogitsProcessorList(_warpers(settings) if is_random(settings) else ())
    if (watermark := settings.watermarking_config) is not None:
        result.append(watermark_processor(watermark, vocab_size, device))
    if settings.renormalize_logits:
        result.append(LogitNormalization())
    return result


def _guidance(settings: GenerationConfig, context: Context) -> Iterator[Processor]:
    """Yields the processors that change scores for sequences: guidance, bias, diversity."""
    if (scale := settings.guidance_scale) not in (None, 1):
        yield UnbatchedClassifierFreeGuidanceLogitsProcessor(
            scale,
            context.model,
            context.negative_prompt_ids,
            context.negative_prompt_attention_mask,
            settings.use_cache is not False,
        )
    if biases := settings.sequence_bias:
        yield SequenceBiasLogitsProcessor(biases)
    groups = settings.num_beam_groups or 1
    if groups > 1 and (penalty := settings.diversity_penalty):  # one group has no other that it could differ from
        yield HammingDiversityLogitsProcessor(float(penalty), settings.num_beams or 1, groups)


def _repetition(settings: GenerationConfig, context: Context) -> Iterator[Processor]:
    """Yields the processors that depend on the tokens of the row or the prompt."""
    ids = context.prompt_ids
    if (penalty := settings.encoder_repetition_penalty) not in (None, 1) and _has_ids(
        context, "encoder_repetition_penalty", "it has no effect"
    ):
        yield EncoderRepetitionPenaltyLogitsProcessor(float(penalty), ids)
    if (penalty := settings.repetition_penalty) not in (None, 1):
        _has_ids(context, "repetition_penalty", "it counts only tokens of the answer")
        yield RepetitionPenaltyLogitsProcessor(float(penalty), _padding(context))
    if size := settings.no_repeat_ngram_size:
        _has_ids(context, "no_repeat_ngram_size", "it counts only tokens of the answer")
        yield NoRepeatNGramLogitsProcessor(size)
    if (size := settings.encoder_no_repeat_ngram_size) and _has_ids(
        context, "encoder_no_repeat_ngram_size", "it has no effect"
    ):
        yield EncoderNoRepeatNGramLogitsProcessor(size, ids)
    if words := settings.bad_words_ids:
        yield NoBadWordsLogitsProcessor(words, list(settings.eos_token_ids))


def _lengths(settings: GenerationConfig, context: Context) -> Iterator[Processor]:
    """Yields the processors for minimum lengths and the first and last tokens."""
    ends, device, length = list(settings.eos_token_ids), context.prompt_ids.device, context.prompt_ids.shape[1]
    if ends and (minimum := _minimum_length(settings, context)):
        yield MinLengthLogitsProcessor(minimum, ends, device)
    if ends and settings.min_new_tokens:
        yield MinNewTokensLengthLogitsProcessor(length, settings.min_new_tokens, ends, device)
    if context.prefix_allowed_tokens_fn is not None:
        beams = (settings.num_beams or 1) // (settings.num_beam_groups or 1)
        yield PrefixConstrainedLogitsProcessor(context.prefix_allowed_tokens_fn, beams)
    if (token := settings.forced_bos_token_id) is not None:
        yield ForcedBOSTokenLogitsProcessor(token)
    if (tokens := settings.forced_eos_token_id) is not None:
        yield ForcedEOSTokenLogitsProcessor(context.max_length, tokens, device)
    if settings.remove_invalid_values:
        yield InfNanRemoveLogitsProcessor()
    if (decay := settings.exponential_decay_length_penalty) is not None:
        if not ends:
            raise RequestError(
                f"exponential_decay_length_penalty is {decay}, but there is no eos_token_id whose score it could "
                "raise; set eos_token_id"
            )
        yield ExponentialDecayLengthPenalty(decay, ends, length)


def _tokens(settings: GenerationConfig, context: Context) -> Iterator[Processor]:
    """Yields the processors that suppress or force single tokens."""
    device, begin = context.prompt_ids.device, context.prompt_ids.shape[1]
    forced = settings.forced_decoder_ids
    suppressed, suppressed_at_begin = settings.suppress_tokens, settings.begin_suppress_tokens  # lists or tensors
    if suppressed is not None and len(suppressed):
        yield SuppressTokensLogitsProcessor(suppressed, device)
    if suppressed_at_begin is not None and len(suppressed_at_begin):
        if begin <= 1 and settings.forced_bos_token_id is not None:
            begin += 1
        begin += forced[-1][0] if forced else 0
        yield SuppressTokensAtBeginLogitsProcessor(suppressed_at_begin, begin, device)
    if forced:
        yield ForceTokensLogitsProcessor(forced)


def _warpers(settings: GenerationConfig) -> Iterator[Processor]:
    """Yields the temperature and the filters, which in a beam search leave a token that does not end the text."""
    keep = max(len(settings.eos_token_ids), 1) + 1 if (settings.num_beams or 1) > 1 else 1
    if settings.temperature not in (None, 1):
        yield TemperatureLogitsWarper(float(settings.temperature))
    if (top_h := settings.top_h) is not None:
        yield TopHLogitsWarper(top_h)
    if settings.top_k is not None and settings.top_k > 0:
        yield TopKLogitsWarper(settings.top_k, min_tokens_to_keep=keep)
    if settings.top_p is not None and settings.top_p < 1:
        yield TopPLogitsWarper(settings.top_p, min_tokens_to_keep=keep)
    if settings.min_p is not None:
        yield MinPLogitsWarper(settings.min_p, min_tokens_to_keep=keep)
    if (mass := settings.typical_p) is not None and mass < 1:
        yield TypicalLogitsWarper(mass, min_tokens_to_keep=keep)
    if (cutoff := settings.epsilon_cutoff) is not None and 0 < cutoff < 1:
        yield EpsilonLogitsWarper(cutoff, min_tokens_to_keep=keep)
    if (cutoff := settings.eta_cutoff) is not None and 0 < cutoff < 1:
        yield EtaLogitsWarper(cutoff, min_tokens_to_keep=keep)


def _minimum_length(settings: GenerationConfig, context: Context) -> int:
    """Returns the minimum number of ids in a row; `min_new_tokens` replaces `min_length`, and embeddings count."""
    minimum: int = settings.min_length or 0
    if (added := settings.min_new_tokens) is not None:
        if minimum:
            warnings.warn(
                f"min_length is {minimum} and min_new_tokens {added}; min_new_tokens takes precedence. Remove one",
                stacklevel=4,
            )
        return context.prompt_ids.shape[1] + int(added)
    if context.prompt_ids.shape[1] == 0 and context.attention_mask is not None:
        minimum -= context.attention_mask.shape[1]
    return max(minimum, 0)


def _has_ids(context: Context, name: str, effect: str) -> bool:
    """Returns whether the prompt has ids; warns about an option that needs them."""
    if context.prompt_ids.shape[1]:
        return True
    warnings.warn(f"{name} needs the ids of the prompt, but only inputs_embeds were passed; {effect}", stacklevel=3)
    return False


def _padding(context: Context) -> Tensor | None:
    """Returns the number of padding tokens at the start of each row, (rows,); None without padding."""
    tokens = context.prompt_ids.shape[1]
    if context.attention_mask is None or tokens == 0:
        return None
    lengths = (context.attention_mask[:, -tokens:] != 0).int().argmax(dim=1)
    return lengths if bool(torch.any(lengths > 0)) else None
