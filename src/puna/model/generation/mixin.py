"""`GenerationMixin`: the methods of a language model that generate text, under the names of transformers."""

from __future__ import annotations

from puna.model.generation.direct import DirectMethods
from puna.model.generation.generate import generate
from puna.model.generation.native.choice import native_generation
from puna.model.generation.token_healing import heal_tokens
from puna.model.generation.transition_scores import compute_transition_scores


class GenerationMixin(DirectMethods):
    """Base class of language models: `generate()` and the methods around it."""

    generation_path: str | None = None
    """Which path the last call of `generate()` took: "native", or "torch: " and the reason."""

    native_generation = native_generation

    generate = generate
    heal_tokens = heal_tokens
    compute_transition_scores = compute_transition_scores
