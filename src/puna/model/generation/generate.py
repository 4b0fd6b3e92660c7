"""`model.generate()`: continues texts with PyTorch, with the arguments of Hugging Face's method.

It does not use the engine. Prompts are padded on the left to the same length; rows that have ended are filled with the
padding token until all rows have ended. The strategies are in `strategies/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from puna.config import GenerationConfig, GenerationOptions
from puna.errors import RequestError
from puna.model.cache import KVCache, LegacyCache
from puna.model.checks import check_layers
from puna.model.foreign_cache import extend, read_layers
from puna.model.generation.arguments import check_arguments, check_copies
from puna.model.generation.criteria import Criterion, build_criteria
from puna.model.generation.custom import check_custom, custom_arguments, run_custom
from puna.model.generation.lengths import maximum_length
from puna.model.generation.loop import Decoding, LanguageModel, Streamer, TorchForward, is_sharded
from puna.model.generation.native.choice import choose_forward
from puna.model.generation.outputs import GenerateDecoderOnlyOutput, GenerateOutput
from puna.model.generation.processors.base import Processor
from puna.model.generation.processors.build import Context, build_processors
from puna.model.generation.prompt import Prompt, PromptArguments, read_prompt
from puna.model.generation.settings import check_names, choose_generator, generation_mode, merge_settings
from puna.model.generation.strategies.table import STRATEGIES
from puna.model.generation.token_healing import healed

if TYPE_CHECKING:
    from typing_extensions import Unpack


class GenerateOptions(GenerationOptions, total=False):
    """The keyword arguments of `generate()`: the fields of `GenerationConfig` and the inputs of the model."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    inputs_embeds: Tensor | None
    past_key_values: LegacyCache | None
    position_ids: Tensor | None
    tokenizer: Any
    assistant_tokenizer: Any
    seed: int | None
    generator: torch.Generator | None
    trust_remote_code: bool | None


_FORWARD_ONLY = ("labels", "return_dict", "logits_to_keep", "num_logits_to_keep", "cache_position")
"""Arguments of forward that `generate()` sets itself, or that have no effect on the answer; values are ignored."""


def generate(
    self: LanguageModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Processor] | None = None,
    stopping_criteria: Sequence[Criterion] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: LanguageModel | None = None,
    streamer: Streamer | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    use_model_defaults: bool | None = None,
    custom_generate: Callable[..., Any] | None = None,
    **options: Unpack[GenerateOptions],
) -> Tensor | GenerateOutput:
    """Continues each row of the prompt: greedily, by sampling, or with another strategy that the settings select.

    Args:
        inputs: (B, T) ids of the prompt; `input_ids` is an alias. Without a prompt, the text starts with bos.
        generation_config: settings in place of the model's. The model's token ids are used where it has none.
        logits_processor: functions that change the scores, called after those of the settings.
        stopping_criteria: functions that return which rows have ended, called after each token.
        prefix_allowed_tokens_fn: returns the tokens that may follow the ids of a row: (prompt index, ids) -> ids.
        synced_gpus: continue until all processes of `torch.distributed` have finished; by default for models that
            FSDP has sharded, whose forward passes need all processes.
        assistant_model: a smaller model with the same vocabulary, which drafts tokens.
        streamer: receives the prompt and each token; one prompt without beams.
        negative_prompt_ids, negative_prompt_attention_mask: for `guidance_scale`.
        use_model_defaults: whether the model's settings are used where `generation_config` sets none.
        custom_generate: a decoding loop in place of puna's, whose result is returned: a function (model, input_ids,
            logits_processor, stopping_criteria, generation_config, attention_mask, use_cache, logits_to_keep, ...). It
            also receives the keywords of this call that only its signature has.
        options: the fields of `GenerationConfig`, which override `generation_config`. None disables a filter or
            penalty, and restores the default of any other field. And:
            attention_mask: (B, T), 0 for padding, which belongs on the left. By default, tokens equal to the pad token
            are padding, unless it is also an eos token. Cached tokens that are not in `inputs` need columns, too.
            inputs_embeds: (B, T, D) in place of the ids; without ids, the result contains only the new tokens.
            past_key_values: cache of the first tokens of `inputs`, or of earlier tokens, which the mask must then
            cover; the `DynamicCache` of transformers is accepted and extended.
            position_ids: (B, T), by default counted from the mask. tokenizer: for `stop_strings`.
            seed: makes sampling repeatable; generator: random generator; without both, PyTorch's global one is used.

    Returns:
        (B x num_return_sequences, tokens) ids of prompt and answer, padded on the right; or, with
        `return_dict_in_generate`, a `GenerateDecoderOnlyOutput` or `GenerateBeamDecoderOnlyOutput`.

    Raises:
        RequestError: if arguments contradict each other or are not supported.
        ConfigError: if a setting is out of range.

    Warns:
        UserWarning: about arguments that are probably a mistake, such as a prompt longer than `max_length`.
    """
    check_custom(custom_generate)
    keywords: dict[str, Any] = {**options}
    own_arguments = custom_arguments(custom_generate, keywords, _names(self))
    changes, arguments = _split(self, keywords)
    check_arguments(
        {
            **arguments, "logits_processor": logits_processor, "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn, "synced_gpus": synced_gpus, "streamer": streamer,
            "assistant_model": assistant_model, "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask, "use_model_defaults": use_model_defaults,
        }
    )  # fmt: skip
    settings = merge_settings(self, generation_config, changes, use_model_defaults)
    strategy = _strategy(settings, assistant_model, streamer)
    random = choose_generator(arguments.get("seed"), arguments.get("generator"), self.device)
    prompt = _read_prompt(self, settings, inputs, arguments)
    if settings.token_healing:
        prompt = healed(self, prompt, arguments.get("tokenizer"))
    tokens, longest = prompt.ids.shape[1], maximum_length(settings, prompt.ids.shape[1])
    criteria = build_criteria(
        settings, longest, stopping_criteria or (), arguments.get("tokenizer"), self.config.context_length
    )
    limit = 0 if settings.max_new_tokens == 0 else max(1, (criteria.max_length or longest) - tokens)
    group = prompt.first_group(settings.num_beams, settings.num_beam_groups)  # processors see one group at a time
    context = Context(
        group.ids, tokens + limit, self.config.vocab_size, group.mask, self, negative_prompt_ids,
        negative_prompt_attention_mask, prefix_allowed_tokens_fn,
    )  # fmt: skip
    if prompt.embeds is not None:
        settings.use_cache = True  # the embeddings are the inputs of the first forward pass only
    with torch.no_grad():
        if custom_generate is None:
            runner, self.generation_path = choose_forward(self, settings, prompt, limit)
        else:
            runner = TorchForward(self, prompt, settings.use_cache)
            self.generation_path = "torch: custom_generate is given"
    decoding = Decoding(
        self,
        settings,
        prompt,
        limit,
        build_processors(settings, context, logits_processor or ()),
        criteria,
        streamer,
        random,
        runner,
        synced=is_sharded(self) if synced_gpus is None else synced_gpus,
        assistant=assistant_model,
        tokenizers=(arguments.get("tokenizer"), arguments.get("assistant_tokenizer")),
    )
    with torch.no_grad():
        if custom_generate is not None:
            result: GenerateOutput = run_custom(custom_generate, decoding, tokens + limit, own_arguments)
            return result
        out = strategy(decoding) if limit else GenerateDecoderOnlyOutput(prompt.ids)
    _extend_cache(arguments.get("past_key_values"), out)
    return out if settings.return_dict_in_generate else out.sequences


def _strategy(
    settings: GenerationConfig, assistant: Any, streamer: Streamer | None
) -> Callable[[Decoding], GenerateOutput]:
    mode = generation_mode(settings, assistant)
    if streamer is not None and settings.num_beams > 1:
        raise RequestError("streamer cannot be used with beam search; set num_beams=1")
    return STRATEGIES[mode]


def _split(model: LanguageModel, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the keywords of a call that are settings, and the others.

    Raises:
        RequestError: if there is no such argument; None is accepted for any name, as in transformers.
    """
    fields = _fields(model)
    settings = {name: value for name, value in options.items() if name in fields}
    others = {name: value for name, value in options.items() if name not in fields}
    check_names([name for name, value in others.items() if value is not None], [*sorted(_names(model)), *_METHOD])
    return settings, others


def _fields(model: LanguageModel) -> set[str]:
    """Returns the names of settings."""
    return {*GenerationConfig().to_dict(), *model.generation_config.extra}


def _names(model: LanguageModel) -> set[str]:
    """Returns the names of keywords that are not in the signature of `generate`."""
    own = {*GenerateOptions.__annotations__, *_FORWARD_ONLY, *inspect.signature(model.forward).parameters}
    return own | _fields(model)


_METHOD = tuple(inspect.signature(generate).parameters)[1:-1]


def _extra(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that only the forward method of a subclass accepts."""
    own = {*GenerateOptions.__annotations__, *_FORWARD_ONLY}
    return {name: value for name, value in arguments.items() if name not in own and value is not None}


def _read_prompt(
    model: LanguageModel, settings: GenerationConfig, inputs: Tensor | None, arguments: Mapping[str, Any]
) -> Prompt:
    """Returns the prompt, with one row for each text or beam."""
    ids = arguments.get("input_ids")
    if inputs is not None and ids is not None:
        raise RequestError("the prompt was given twice, as inputs and as input_ids; keep one of them")
    prompt_arguments = PromptArguments(
        ids if inputs is None else inputs,
        arguments.get("inputs_embeds"),
        arguments.get("attention_mask"),
        _read_cache(arguments.get("past_key_values")),
        arguments.get("position_ids"),
        _extra(arguments),
        model.warnings_issued,
    )
    prompt = read_prompt(settings, model.config.hidden_size, model.device, prompt_arguments)
    check_copies(model, settings, len(prompt.ids), prompt.mask.shape[1] + 1)
    return prompt.repeat(max(settings.num_beams, settings.num_return_sequences))


def _read_cache(past: Any) -> KVCache | None:
    """Returns the argument `past_key_values` as a cache."""
    if past is None:
        return None
    layers = read_layers(past)
    check_layers(layers)
    return KVCache.of(layers)


def _extend_cache(cache: Any, out: GenerateOutput) -> None:
    """Adds the new tokens to the caller's cache object, if it is one of transformers, and returns it in the output."""
    if out.past_key_values and read_layers(cache) is not cache and extend(cache, out.past_key_values):
        out.past_key_values = cache
