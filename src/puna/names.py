"""The public names of puna, by the module that defines them. `puna/__init__.py` imports each one on first use.

Add a new name here and, for type checkers, to the imports in `puna/__init__.py`; a test compares the two.
"""

from __future__ import annotations

_NAMES = {
    "puna.answer": "Completion",
    "puna.async_llm": "AsyncLLM",
    "puna.classification": "Classification",
    "puna.compat.seed": "set_seed",
    "puna.config.auto": "AutoConfig",
    "puna.config": "GenerationConfig LlamaConfig PretrainedConfig",
    "puna.config.watermarks": "SynthIDTextWatermarkingConfig WatermarkingConfig",
    "puna.convert": "convert merge",
    "puna.errors": "PunaError",
    "puna.llm": "LLM",
    "puna.model": "LlamaForCausalLM LlamaForQuestionAnswering LlamaForSequenceClassification "
    "LlamaForTokenClassification LlamaModel LlamaPreTrainedModel",
    "puna.model.generation.criteria": (
        "ConfidenceCriteria EosTokenCriteria MaxLengthCriteria MaxNewTokensCriteria MaxTimeCriteria "
        "StopStringCriteria StoppingCriteria StoppingCriteriaList validate_stopping_criteria"
    ),
    "puna.config.generation_mode": "GenerationMode",
    "puna.model.generation.mixin": "GenerationMixin",
    "puna.model.generation.outputs": (
        "BeamSampleDecoderOnlyOutput BeamSearchDecoderOnlyOutput ContrastiveSearchDecoderOnlyOutput "
        "GenerateBeamDecoderOnlyOutput GenerateDecoderOnlyOutput GreedySearchDecoderOnlyOutput SampleDecoderOnlyOutput"
    ),
    "puna.model.generation.processors": (
        "ClassifierFreeGuidanceLogitsProcessor EncoderNoRepeatNGramLogitsProcessor "
        "EncoderRepetitionPenaltyLogitsProcessor EpsilonLogitsWarper EtaLogitsWarper ExponentialDecayLengthPenalty "
        "ForceTokensLogitsProcessor ForcedBOSTokenLogitsProcessor ForcedEOSTokenLogitsProcessor "
        "HammingDiversityLogitsProcessor InfNanRemoveLogitsProcessor LogitNormalization LogitsProcessor "
        "LogitsProcessorList LogitsWarper MinLengthLogitsProcessor MinNewTokensLengthLogitsProcessor MinPLogitsWarper "
        "NoBadWordsLogitsProcessor NoRepeatNGramLogitsProcessor PrefixConstrainedLogitsProcessor "
        "RepetitionPenaltyLogitsProcessor SequenceBiasLogitsProcessor SuppressTokensAtBeginLogitsProcessor "
        "SuppressTokensLogitsProcessor SynthIDTextWatermarkLogitsProcessor "
        "TemperatureLogitsWarper TopHLogitsWarper TopKLogitsWarper TopPLogitsWarper TypicalLogitsWarper "
        "UnbatchedClassifierFreeGuidanceLogitsProcessor WatermarkDetector WatermarkDetectorOutput "
        "WatermarkLogitsProcessor top_k_top_p_filtering"
    ),
    "puna.model.generation.strategies.constrained_scorer": "ConstrainedBeamSearchScorer",
    "puna.model.generation.strategies.constraints": (
        "Constraint ConstraintListState DisjunctiveConstraint PhrasalConstraint"
    ),
    "puna.model.generation.strategies.hypotheses": "BeamHypotheses",
    "puna.model.generation.strategies.scorers": "BeamScorer BeamSearchScorer",
    "puna.model.generation.streamers": "AsyncTextIteratorStreamer BaseStreamer TextIteratorStreamer TextStreamer",
    "puna.model.huggingface.auto": "AutoModel AutoModelForCausalLM AutoModelForQuestionAnswering "
    "AutoModelForSequenceClassification AutoModelForTokenClassification",
    "puna.model.huggingface.pipelines": "pipeline",
    "puna.model.outputs": "BaseModelOutputWithPast CausalLMOutputWithPast ModelOutput QuestionAnsweringModelOutput "
    "SequenceClassifierOutputWithPast TokenClassifierOutput",
    "puna.tokenizer": "AddedToken AutoTokenizer BatchEncoding CodeLlamaTokenizer CodeLlamaTokenizerFast LlamaTokenizer "
    "LlamaTokenizerFast load_tokenizer",
}

MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
"""The module that defines each public name."""

NEED_TORCH = frozenset(name for name, module in MODULES.items() if module.split(".")[:2] == ["puna", "model"])
"""The names that cannot be imported without PyTorch."""
