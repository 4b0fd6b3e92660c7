"""`GenerationMode`: the decoding strategies, and the rule by which the settings select one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class GenerationMode(str, Enum):
    """A decoding strategy; compares equal to its name in transformers."""

    CONTRASTIVE_SEARCH = "contrastive_search"
    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    ASSISTED_GENERATION = "assisted_generation"
    DOLA_GENERATION = "dola_generation"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    CONSTRAINED_BEAM_SEARCH = "constrained_beam_search"
    GROUP_BEAM_SEARCH = "group_beam_search"


def select_mode(fields: Mapping[str, Any], assistant: bool = False) -> GenerationMode:
    """Returns the strategy that the fields of a `GenerationConfig` select.

    Args:
        fields: all fields.
        assistant: whether there is an assistant model.
    """
    if fields["constraints"] is not None or fields["force_words_ids"] is not None:
        return GenerationMode.CONSTRAINED_BEAM_SEARCH
    sampled = bool(fields["do_sample"])
    if (fields["num_beams"] or 1) > 1:
        if (fields["num_beam_groups"] or 1) > 1:
            return GenerationMode.GROUP_BEAM_SEARCH
        return GenerationMode.BEAM_SAMPLE if sampled else GenerationMode.BEAM_SEARCH
    if not sampled and (fields["top_k"] or 0) > 1 and (fields["penalty_alpha"] or 0) > 0:
        return GenerationMode.CONTRASTIVE_SEARCH
    if fields["dola_layers"] is not None:
        return GenerationMode.DOLA_GENERATION
    if assistant or fields["prompt_lookup_num_tokens"] is not None or fields["assistant_early_exit"] is not None:
        return GenerationMode.ASSISTED_GENERATION
    return GenerationMode.SAMPLE if sampled else GenerationMode.GREEDY_SEARCH
