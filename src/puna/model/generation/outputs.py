"""The outputs of `generate(return_dict_in_generate=True)`, with the classes of Hugging Face's method.

Legend: R rows (prompts x num_return_sequences), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from puna.model.cache import KVCache
from puna.model.outputs import ModelOutput

LayersPerPass = tuple[tuple[Tensor, ...], ...]
"""For each forward pass, a tensor for each layer."""


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """Output of greedy search, sampling, and the other strategies without beams.

    Attributes:
        sequences: (R, prompt + new tokens), int64.
        scores: per new token (R, V), the processed logits that the token was chosen from, if `output_scores` is set.
        logits: per new token (R, V), the logits of the model, if `output_logits` is set.
        attentions: per forward pass the attention weights of each layer, if `output_attentions` is set.
        hidden_states: per forward pass the hidden states of each layer, if `output_hidden_states` is set.
        past_key_values: the cache after the last forward pass.
    """

    sequences: Tensor = None  # type: ignore[assignment]
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: LayersPerPass | None = None
    hidden_states: LayersPerPass | None = None
    past_key_values: KVCache | None = None


@dataclass(eq=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Output of the strategies with beams.

    Attributes:
        sequences: (R, prompt + new tokens), int64.
        sequences_scores: (R,), the final score of each sequence.
        scores: per new token (prompts x beams, V), the processed log-probabilities, if `output_scores` is set.
        logits: per new token (prompts x beams, V), the logits of the model, if `output_logits` is set.
        beam_indices: (R, new tokens), the beam that each token of a sequence comes from; -1 after its end.
        attentions, hidden_states, past_key_values: as in `GenerateDecoderOnlyOutput`, with a row for each beam.
    """

    sequences: Tensor = None  # type: ignore[assignment]
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: LayersPerPass | None = None
    hidden_states: LayersPerPass | None = None
    past_key_values: KVCache | None = None


GenerateOutput = GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput

GenerateNonBeamOutput = GenerateDecoderOnlyOutput
GenerateBeamOutput = GenerateBeamDecoderOnlyOutput

# transformers 4.34 has one class for each strategy; later releases keep these names for two classes.
GreedySearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
SampleDecoderOnlyOutput = GenerateDecoderOnlyOutput
ContrastiveSearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
BeamSearchDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput
BeamSampleDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput
