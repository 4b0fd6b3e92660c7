"""For compatibility only: the methods of transformers 4 that run one decoding strategy, such as `model.beam_search`.

Transformers 5 has only `generate()`. Here, no processors or criteria are built from the settings: only those that are
passed are used, and a beam search is configured by its scorer. The rows of the prompt are not repeated.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.cache import LegacyCache
from puna.model.checks import check_ids
from puna.model.generation.arguments import check_arguments
from puna.model.generation.criteria import (
    Criterion,
    EosTokenCriteria,
    StoppingCriteriaList,
    validate_stopping_criteria,
)
from puna.model.generation.loop import Decoding, LanguageModel, Streamer, TorchForward
from puna.model.generation.outputs import GenerateOutput
from puna.model.generation.processors.base import LogitsProcessorList, Processor, check_integer, number
from puna.model.generation.prompt import PromptArguments, read_prompt
from puna.model.generation.strategies.assisted import assisted_decoding
from puna.model.generation.strategies.contrastive import contrastive_search
from puna.model.generation.strategies.greedy import greedy_search
from puna.model.generation.strategies.sampling import sample
from puna.model.generation.strategies.scored import ScoredSearch, scored_search
from puna.model.generation.strategies.scorers import BeamScorer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DirectOptions(TypedDict, total=False):
    """The keyword arguments that all methods have: settings, which override those of the model, and inputs."""

    max_length: int | None
    pad_token_id: int | None
    eos_token_id: int | list[int] | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_scores: bool | None
    output_logits: bool | None
    return_dict_in_generate: bool | None
    use_cache: bool | None
    synced_gpus: bool | None
    streamer: Streamer | None
    attention_mask: Tensor | None
    inputs_embeds: Tensor | None
    past_key_values: LegacyCache | None
    position_ids: Tensor | None


_SETTINGS = (
    "pad_token_id", "eos_token_id", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "use_cache",
)  # fmt: skip

Processors = Sequence[Processor] | None
Criteria = Sequence[Criterion] | None
Result = Tensor | GenerateOutput


class DirectMethods:
    """One method for each strategy. Each returns ids, (rows, tokens), or with `return_dict_in_generate` an output."""

    def greedy_search(
        self: Any,
        input_ids: Tensor,
        logits_processor: Processors = None,
        stopping_criteria: Criteria = None,
        **options: Unpack[DirectOptions],
    ) -> Result:
        """Continues each row, (rows, tokens), with the most likely tokens."""
        return _run(greedy_search, _decoding(self, input_ids, logits_processor, stopping_criteria, options))

    def sample(
        self: Any,
        input_ids: Tensor,
        logits_processor: Processors = None,
        stopping_criteria: Criteria = None,
        logits_warper: Processors = None,
        **options: Unpack[DirectOptions],
    ) -> Result:
        """Continues each row, (rows, tokens), with tokens that are drawn at random."""
        processors = _join(logits_processor, logits_warper)
        return _run(sample, _decoding(self, input_ids, processors, stopping_criteria, options, do_sample=True))

    def beam_search(
        self: Any,
        input_ids: Tensor,
        beam_scorer: BeamScorer,
        logits_processor: Processors = None,
        stopping_criteria: Criteria = None,
        **options: Unpack[DirectOptions],
    ) -> Result:
        """Continues prompts, which have a row for each beam, (rows, tokens), by the beam search of the scorer."""
        return _scored(self, input_ids, logits_processor, stopping_criteria, options, ScoredSearch(beam_scorer))

    group_beam_search = beam_search
    """Diverse beam search; the scorer has the groups."""

    def beam_sample(
        self: Any,
        input_ids: Tensor,
        beam_scorer: BeamScorer,
        logits_processor: Processors = None,
        stopping_criteria: Criteria = None,
        logits_warper: Processors = None,
        **options: Unpack[DirectOptions],
    ) -> Result:
        """Continues prompts, which have a row for each beam, by beam sampling."""
        check_arguments({"logits_warper": logits_warper})
        search = ScoredSearch(beam_scorer, warp=LogitsProcessorList(logits_warper or ()))
        return _scored(self, input_ids, logits_processor, stopping_criteria, options, search)

    def constrained_beam_search(
        self: Any,
        input_ids: Tensor,
        constrained_beam_scorer: BeamScorer,
        logits_processor: Processors = None,
        stopping_criteria: Criteria = None,
        **options: Unpack[DirectOptions],
    ) -> Result:
        """Continues prompts, which have a row for each beam, with texts that satisfy the scorer's constraints."""
        check_arguments({"constrained_beam_scorer": constrained_beam_scorer})
        search = ScoredSearch(constrained_beam_scorer, constrained=True)
        return _scored(self, input_ids, logits_processor, stopping_criteria, options, search)

    @torch.no_grad()
    def contrastive_search(
        self: Any,
        input_ids: Tensor,
        top_k: int = 1,
        penalty_alpha: float = 0.0,
        logits_processor: Processors = None,
        logits_warper: Processors = None,
        stopping_criteria: Criteria = None,
        *,
        sequential: bool | None = None,
        **options: Unpack[DirectOptions],
    ) -> Result:
        """Continues each row, (rows, tokens), by contrastive search; `sequential` is the setting `low_memory`."""
        check_integer("top_k", top_k, 1)
        penalty_alpha = number("penalty_alpha", penalty_alpha, "from 0 to 1", 0, 1)
        low_memory = self.generation_config.low_memory if sequential is None else sequential
        settings = {"top_k": top_k, "penalty_alpha": penalty_alpha, "low_memory": low_memory, "use_cache": True}
        processors = _join(logits_processor, logits_warper)
        return _run(contrastive_search, _decoding(self, input_ids, processors, stopping_criteria, options, **settings))

    def assisted_decoding(
        self: Any,
        input_ids: Tensor,
        assistant_model: LanguageModel,
        do_sample: bool = False,
        logits_processor: Processors = None,
        logits_warper: Processors = None,
        stopping_criteria: Criteria = None,
        **options: Unpack[DirectOptions],
    ) -> Result:
        """Continues the prompt, (1, tokens), with tokens that `assistant_model` drafts."""
        check_arguments({"assistant_model": assistant_model})
        processors = _join(logits_processor, logits_warper)
        decoding = _decoding(self, input_ids, processors, stopping_criteria, options, do_sample=do_sample)
        decoding.assistant = assistant_model
        return _run(assisted_decoding, decoding)


def _join(processors: Processors, warpers: Processors) -> list[Processor]:
    check_arguments({"logits_processor": processors, "logits_warper": warpers})
    return [*(processors or ()), *(warpers or ())]


def _scored(
    model: LanguageModel,
    ids: Tensor,
    processors: Processors,
    criteria: Criteria,
    options: DirectOptions,
    search: ScoredSearch,
) -> Result:
    check_arguments({"beam_scorer": search.scorer})
    decoding = _decoding(model, ids, processors, criteria, options)
    search.max_length = decoding.criteria.max_length
    return _run(lambda call: scored_search(call, search), decoding)


def _run(strategy: Callable[[Decoding], GenerateOutput], decoding: Decoding) -> Result:
    out = strategy(decoding)
    return out if decoding.settings.return_dict_in_generate else out.sequences


def _decoding(
    model: LanguageModel, ids: Tensor, processors: Processors, criteria: Criteria, options: DirectOptions, **more: Any
) -> Decoding:
    """Returns the inputs of a strategy. Settings of the call override the model's."""
    for name in options:
        if name not in DirectOptions.__annotations__:
            raise RequestError(f"there is no argument {name!r}; remove it")
    check_arguments({**options, "logits_processor": processors, "stopping_criteria": criteria})
    check_ids(ids)
    settings = copy.deepcopy(model.generation_config)
    changes = {name: options.get(name) for name in _SETTINGS}
    for name, value in {**changes, **more}.items():
        if value is not None:
            setattr(settings, name, value)
    inputs = PromptArguments(
        ids,
        options.get("inputs_embeds"),
        torch.ones_like(ids) if options.get("attention_mask") is None else options.get("attention_mask"),
        options.get("past_key_values"),
        options.get("position_ids"),
    )
    prompt = read_prompt(settings, model.config.hidden_size, model.device, inputs)
    criteria = _criteria(settings.eos_token_ids, criteria, options.get("max_length"))
    limit = sys.maxsize if criteria.max_length is None else criteria.max_length - ids.shape[1]
    return Decoding(
        model,
        settings,
        prompt,
        max(1, limit),
        LogitsProcessorList(processors or ()),
        criteria,
        options.get("streamer"),
        None,
        TorchForward(model, prompt, bool(settings.use_cache)),
        synced=bool(options.get("synced_gpus")),
    )


def _criteria(ends: tuple[int, ...], custom: Criteria, max_length: int | None) -> StoppingCriteriaList:
    criteria = StoppingCriteriaList(custom or ())
    if max_length is not None:
        warnings.warn(
            "max_length is deprecated in this method; pass stopping_criteria=[MaxLengthCriteria(max_length)]",
            stacklevel=4,
        )
        criteria = validate_stopping_criteria(criteria, max_length)
    if not criteria:
        warnings.warn("there are no stopping_criteria; the text may never end", stacklevel=4)
    return StoppingCriteriaList([*criteria, EosTokenCriteria(list(ends))] if ends else criteria)
