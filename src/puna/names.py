"""The public names of puna, by the module that defines them. `puna/__init__.py` imports each one on first use.

Add a new name here and, for type checkers, to the imports in `puna/__init__.py`; a test compares the two.
"""

from __future__ import annotations

_NAMES = {
    "puna.answer": "Completion",
    "puna.async_llm": "AsyncLLM",
    "puna.classification": "Classification",
    "puna.compat": "logging",
    "puna.compat.seed": "set_seed",
    "puna.config.auto": "AutoConfig",
    "puna.config": "GenerationConfig LlamaConfig PreTrainedConfig PretrainedConfig",
    "puna.config.generation.compilation": "CompileConfig",
    "puna.config.generation.watermarks": "SynthIDTextWatermarkingConfig WatermarkingConfig",
    "puna.convert": "convert merge",
    "puna.errors": "PunaError",
    "puna.llm": "LLM",
    "puna.model": "LlamaForCausalLM LlamaForQuestionAnswering LlamaForSequenceClassification "
    "LlamaForTokenClassification LlamaModel LlamaPreTrainedModel PreTrainedModel",
    "puna.model.generation.criteria": (
        "ConfidenceCriteria EosTokenCriteria MaxLengthCriteria MaxNewTokensCriteria MaxTimeCriteria "
        "StopStringCriteria StoppingCriteria StoppingCriteriaList validate_stopping_criteria"
    ),
    "puna.config.generation.mode": "GenerationMode",
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
    "puna.model.huggingface.caches": "Cache DynamicCache StaticCache",
    "puna.model.huggingface.pipelines": "pipeline",
    "puna.model.outputs": "BaseModelOutputWithPast CausalLMOutputWithPast ModelOutput QuestionAnsweringModelOutput "
    "SequenceClassifierOutputWithPast TokenClassifierOutput",
    "puna.tokenizer": "AddedToken AutoTokenizer BatchEncoding CodeLlamaTokenizer CodeLlamaTokenizerFast LlamaTokenizer "
    "LlamaTokenizerFast PreTrainedTokenizerBase load_tokenizer",
    "puna.training.api": "TrainingResult train",
}

MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
"""The module that defines each public name."""

NEED_TORCH = frozenset(name for name, module in MODULES.items() if module.split(".")[1] in ("model", "training"))
"""The names that cannot be imported without PyTorch."""

_OF_TRANSFORMERS = {
    "a trainer or its part": "Trainer TrainingArguments TrainerCallback TrainerControl TrainerState PrinterCallback "
    "ProgressCallback DefaultFlowCallback EarlyStoppingCallback EvalPrediction HfArgumentParser IntervalStrategy "
    "SchedulerType Seq2SeqTrainer Seq2SeqTrainingArguments get_scheduler get_constant_schedule "
    "get_constant_schedule_with_warmup get_linear_schedule_with_warmup get_cosine_schedule_with_warmup "
    "get_cosine_with_hard_restarts_schedule_with_warmup get_polynomial_decay_schedule_with_warmup Adafactor AdamW",
    "a data collator": "DataCollator DataCollatorWithPadding DataCollatorForLanguageModeling "
    "DataCollatorForTokenClassification DataCollatorForSeq2Seq DataCollatorWithFlattening default_data_collator "
    "DefaultDataCollator",
    "a pipeline": "Pipeline TextGenerationPipeline TextClassificationPipeline TokenClassificationPipeline "
    "FeatureExtractionPipeline ConversationalPipeline Conversation",
    "a tokenizer class": "PreTrainedTokenizer PreTrainedTokenizerFast TokenizersBackend",
    "a setting of quantisation, which puna's from_pretrained refuses with the remedy": "BitsAndBytesConfig GPTQConfig "
    "AwqConfig TorchAoConfig HqqConfig QuantoConfig",
    "a helper": "TensorType PaddingStrategy is_torch_available is_tokenizers_available is_flash_attn_2_available "
    "is_torch_xla_available enable_full_determinism",
}
OF_TRANSFORMERS = {name: kind for kind, names in _OF_TRANSFORMERS.items() for name in names.split()}
"""Names that can be imported from puna if transformers is installed, because its own objects work with puna's classes.

They are not in `puna.__all__`, so that `from puna import *` does not import transformers.
"""

_ENCODER = "LLaMA has no encoder; use AutoModelForCausalLM"
_TEXT_ONLY = "LLaMA models read text only; use AutoTokenizer"
_ONE_CACHE = "use DynamicCache; the cache stays on the device of the model, without quantisation or a window"
_PYTORCH = "puna has PyTorch models and the native runtime only; use the class without this prefix"
WITHOUT_COUNTERPART = {
    "AutoModelForSeq2SeqLM": _ENCODER, "AutoModelForMaskedLM": _ENCODER, "EncoderDecoderCache": _ENCODER,
    "AutoModelWithLMHead": "use AutoModelForCausalLM", "AutoProcessor": _TEXT_ONLY, "AutoFeatureExtractor": _TEXT_ONLY,
    "AutoImageProcessor": _TEXT_ONLY, "AutoModelForImageTextToText": _TEXT_ONLY, "QuantizedCache": _ONE_CACHE,
    "QuantoQuantizedCache": _ONE_CACHE, "HQQQuantizedCache": _ONE_CACHE, "OffloadedCache": _ONE_CACHE,
    "OffloadedStaticCache": _ONE_CACHE, "SinkCache": _ONE_CACHE, "HybridCache": _ONE_CACHE,
    "SlidingWindowCache": _ONE_CACHE, "QuantizedCacheConfig": _ONE_CACHE, "FlaxLlamaModel": _PYTORCH,
    "FlaxLlamaForCausalLM": _PYTORCH, "TFAutoModelForCausalLM": _PYTORCH, "FlaxAutoModelForCausalLM": _PYTORCH,
    "LLaMATokenizer": "use LlamaTokenizer", "LLaMAForCausalLM": "use LlamaForCausalLM",
    "LLaMAConfig": "use LlamaConfig", "LLaMAModel": "use LlamaModel",
}  # fmt: skip
"""Names of transformers that puna does not have, with the remedy."""
