"""The function of each decoding strategy."""

from __future__ import annotations

from collections.abc import Callable

from puna.config import GenerationMode
from puna.model.generation.loop import Decoding
from puna.model.generation.outputs import GenerateOutput
from puna.model.generation.strategies.assisted import assisted_decoding
from puna.model.generation.strategies.beams import beam_search
from puna.model.generation.strategies.contrastive import contrastive_search
from puna.model.generation.strategies.dola import dola_decoding
from puna.model.generation.strategies.greedy import greedy_search
from puna.model.generation.strategies.sampling import sample
from puna.model.generation.strategies.scored import constrained_beam_search, diverse_beam_search

STRATEGIES: dict[GenerationMode, Callable[[Decoding], GenerateOutput]] = {
    GenerationMode.GREEDY_SEARCH: greedy_search,
    GenerationMode.SAMPLE: sample,
    GenerationMode.BEAM_SEARCH: beam_search,
    GenerationMode.BEAM_SAMPLE: beam_search,
    GenerationMode.GROUP_BEAM_SEARCH: diverse_beam_search,
    GenerationMode.CONSTRAINED_BEAM_SEARCH: constrained_beam_search,
    GenerationMode.CONTRASTIVE_SEARCH: contrastive_search,
    GenerationMode.ASSISTED_GENERATION: assisted_decoding,
    GenerationMode.DOLA_GENERATION: dola_decoding,
}
"""A strategy generates up to `decoding.limit` tokens; it returns the texts and the optional outputs in `collected`."""
