"""Logits processors and warpers: small classes with the names and arguments of transformers, over pure functions."""

from puna.model.generation.processors.base import LogitsProcessor, LogitsProcessorList, LogitsWarper
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
    top_k_top_p_filtering,
)
from puna.model.generation.processors.guidance import (
    ClassifierFreeGuidanceLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
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
from puna.model.generation.processors.synthid import SynthIDTextWatermarkLogitsProcessor
from puna.model.generation.processors.tokens import (
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
from puna.model.generation.processors.watermark import (
    WatermarkDetector,
    WatermarkDetectorOutput,
    WatermarkLogitsProcessor,
)

__all__ = [
    "ClassifierFreeGuidanceLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor", "EpsilonLogitsWarper", "EtaLogitsWarper",
    "ExponentialDecayLengthPenalty", "ForceTokensLogitsProcessor", "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor", "HammingDiversityLogitsProcessor", "InfNanRemoveLogitsProcessor",
    "LogitNormalization", "LogitsProcessor", "LogitsProcessorList", "LogitsWarper", "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor", "MinPLogitsWarper", "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor", "PrefixConstrainedLogitsProcessor", "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor", "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor", "TemperatureLogitsWarper",
    "TopHLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TypicalLogitsWarper",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor", "WatermarkDetector", "WatermarkDetectorOutput",
    "WatermarkLogitsProcessor", "top_k_top_p_filtering",
]  # fmt: skip
