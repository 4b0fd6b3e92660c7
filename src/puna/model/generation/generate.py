"""`model.generate()`: a plain decoding loop in PyTorch, with the arguments of Hugging Face's method.

The loop does not use the engine. Prompts are padded on the left to the same length; rows that have ended are filled
with the padding token until all rows have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.cache import LegacyCache
from puna.model.generation.loop import Criterion, Decoding, LanguageModel, Processor, Streamer
from puna.model.generation.native.choice import choose_forward
from puna.model.generation.outputs import GenerateOutput
from puna.model.generation.processors.build import Context, build_processors
from puna.model.generation.prompt import read_prompt
from puna.model.generation.settings import choose_generator, generation_mode, merge_settings
from puna.model.generation.strategies.table import STRATEGIES


def generate(
    self: LanguageModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Processor] | None = None,
    stopping_criteria: Sequence[Criterion] | None = None,
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
    given = read_prompt(
        settings, self.config.hidden_size, self.device, ids, inputs_embeds, attention_mask, past_key_values
    )
    prompt = given.repeat(settings.num_return_sequences)
    tokens = prompt.ids.shape[1]
    limit = _answer_limit(settings, tokens, prompt.mask.shape[1], self.config.context_length)
    context = Context(prompt.ids, tokens + limit, self.config.vocab_size, prompt.mask, self)
    with torch.no_grad():
        runner, self.generation_path = choose_forward(self, settings, prompt, limit)
        decoding = Decoding(
            self,
            settings,
            prompt,
            limit,
            build_processors(settings, context, logits_processor or ()),
            stopping_criteria or (),
            streamer,
            choose_generator(seed, generator, self.device),
            runner,
        )
        out = STRATEGIES[generation_mode(settings)](decoding)
    return out if settings.return_dict_in_generate else out.sequences


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
        return int(settings.max_new_tokens)
    if settings.max_length > context:
        raise RequestError(f"max_length is {settings.max_length}; it must be at most the model's context, {context}")
    if tokens >= settings.max_length:
        raise RequestError(
            f"the prompt has {tokens} tokens and max_length is {settings.max_length}; set max_new_tokens instead"
        )
    return int(settings.max_length) - tokens
