"""puna: the LLaMA family in one small package. Public names are imported on first use."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from puna.errors import MissingExtraError, MissingNameError
from puna.names import MODULES, NEED_TORCH, OF_TRANSFORMERS, WITHOUT_COUNTERPART

if TYPE_CHECKING:
    from puna.answer import Completion as Completion
    from puna.async_llm import AsyncLLM as AsyncLLM
    from puna.classification import Classification as Classification
    from puna.compat import logging as logging
    from puna.compat.seed import set_seed as set_seed
    from puna.config import GenerationConfig as GenerationConfig
    from puna.config import LlamaConfig as LlamaConfig
    from puna.config import PreTrainedConfig as PreTrainedConfig
    from puna.config import PretrainedConfig as PretrainedConfig
    from puna.config.auto import AutoConfig as AutoConfig
    from puna.config.generation.compilation import CompileConfig as CompileConfig
    from puna.config.generation.mode import GenerationMode as GenerationMode
    from puna.config.generation.watermarks import SynthIDTextWatermarkingConfig as SynthIDTextWatermarkingConfig
    from puna.config.generation.watermarks import WatermarkingConfig as WatermarkingConfig
    from puna.convert import convert as convert
    from puna.convert import merge as merge
    from puna.errors import PunaError as PunaError
    from puna.llm import LLM as LLM
    from puna.model import LlamaForCausalLM as LlamaForCausalLM
    from puna.model import LlamaForQuestionAnswering as LlamaForQuestionAnswering
    from puna.model import LlamaForSequenceClassification as LlamaForSequenceClassification
    from puna.model import LlamaForTokenClassification as LlamaForTokenClassification
    from puna.model import LlamaModel as LlamaModel
    from puna.model import LlamaPreTrainedModel as LlamaPreTrainedModel
    from puna.model import PreTrainedModel as PreTrainedModel
    from puna.model.generation.criteria import ConfidenceCriteria as ConfidenceCriteria
    from puna.model.generation.criteria import EosTokenCriteria as EosTokenCriteria
    from puna.model.generation.criteria import MaxLengthCriteria as MaxLengthCriteria
    from puna.model.generation.criteria import MaxNewTokensCriteria as MaxNewTokensCriteria
    from puna.model.generation.criteria import MaxTimeCriteria as MaxTimeCriteria
    from puna.model.generation.criteria import StoppingCriteria as StoppingCriteria
    from puna.model.generation.criteria import StoppingCriteriaList as StoppingCriteriaList
    from puna.model.generation.criteria import StopStringCriteria as StopStringCriteria
    from puna.model.generation.criteria import validate_stopping_criteria as validate_stopping_criteria
    from puna.model.generation.mixin import GenerationMixin as GenerationMixin
    from puna.model.generation.outputs import BeamSampleDecoderOnlyOutput as BeamSampleDecoderOnlyOutput
    from puna.model.generation.outputs import BeamSearchDecoderOnlyOutput as BeamSearchDecoderOnlyOutput
    from puna.model.generation.outputs import ContrastiveSearchDecoderOnlyOutput as ContrastiveSearchDecoderOnlyOutput
    from puna.model.generation.outputs import GenerateBeamDecoderOnlyOutput as GenerateBeamDecoderOnlyOutput
    from puna.model.generation.outputs import GenerateDecoderOnlyOutput as GenerateDecoderOnlyOutput
    from puna.model.generation.outputs import GreedySearchDecoderOnlyOutput as GreedySearchDecoderOnlyOutput
    from puna.model.generation.outputs import SampleDecoderOnlyOutput as SampleDecoderOnlyOutput
    from puna.model.generation.processors import (
        ClassifierFreeGuidanceLogitsProcessor as ClassifierFreeGuidanceLogitsProcessor,
    )
    from puna.model.generation.processors import (
        EncoderNoRepeatNGramLogitsProcessor as EncoderNoRepeatNGramLogitsProcessor,
    )
    from puna.model.generation.processors import (
        EncoderRepetitionPenaltyLogitsProcessor as EncoderRepetitionPenaltyLogitsProcessor,
    )
    from puna.model.generation.processors import EpsilonLogitsWarper as EpsilonLogitsWarper
    from puna.model.generation.processors import EtaLogitsWarper as EtaLogitsWarper
    from puna.model.generation.processors import ExponentialDecayLengthPenalty as ExponentialDecayLengthPenalty
    from puna.model.generation.processors import ForcedBOSTokenLogitsProcessor as ForcedBOSTokenLogitsProcessor
    from puna.model.generation.processors import ForcedEOSTokenLogitsProcessor as ForcedEOSTokenLogitsProcessor
    from puna.model.generation.processors import ForceTokensLogitsProcessor as ForceTokensLogitsProcessor
    from puna.model.generation.processors import HammingDiversityLogitsProcessor as HammingDiversityLogitsProcessor
    from puna.model.generation.processors import InfNanRemoveLogitsProcessor as InfNanRemoveLogitsProcessor
    from puna.model.generation.processors import LogitNormalization as LogitNormalization
    from puna.model.generation.processors import LogitsProcessor as LogitsProcessor
    from puna.model.generation.processors import LogitsProcessorList as LogitsProcessorList
    from puna.model.generation.processors import LogitsWarper as LogitsWarper
    from puna.model.generation.processors import MinLengthLogitsProcessor as MinLengthLogitsProcessor
    from puna.model.generation.processors import MinNewTokensLengthLogitsProcessor as MinNewTokensLengthLogitsProcessor
    from puna.model.generation.processors import MinPLogitsWarper as MinPLogitsWarper
    from puna.model.generation.processors import NoBadWordsLogitsProcessor as NoBadWordsLogitsProcessor
    from puna.model.generation.processors import NoRepeatNGramLogitsProcessor as NoRepeatNGramLogitsProcessor
    from puna.model.generation.processors import PrefixConstrainedLogitsProcessor as PrefixConstrainedLogitsProcessor
    from puna.model.generation.processors import RepetitionPenaltyLogitsProcessor as RepetitionPenaltyLogitsProcessor
    from puna.model.generation.processors import SequenceBiasLogitsProcessor as SequenceBiasLogitsProcessor
    from puna.model.generation.processors import (
        SuppressTokensAtBeginLogitsProcessor as SuppressTokensAtBeginLogitsProcessor,
    )
    from puna.model.generation.processors import SuppressTokensLogitsProcessor as SuppressTokensLogitsProcessor
    from puna.model.generation.processors import (
        SynthIDTextWatermarkLogitsProcessor as SynthIDTextWatermarkLogitsProcessor,
    )
    from puna.model.generation.processors import TemperatureLogitsWarper as TemperatureLogitsWarper
    from puna.model.generation.processors import TopHLogitsWarper as TopHLogitsWarper
    from puna.model.generation.processors import TopKLogitsWarper as TopKLogitsWarper
    from puna.model.generation.processors import TopPLogitsWarper as TopPLogitsWarper
    from puna.model.generation.processors import TypicalLogitsWarper as TypicalLogitsWarper
    from puna.model.generation.processors import (
        UnbatchedClassifierFreeGuidanceLogitsProcessor as UnbatchedClassifierFreeGuidanceLogitsProcessor,
    )
    from puna.model.generation.processors import WatermarkDetector as WatermarkDetector
    from puna.model.generation.processors import WatermarkDetectorOutput as WatermarkDetectorOutput
    from puna.model.generation.processors import WatermarkLogitsProcessor as WatermarkLogitsProcessor
    from puna.model.generation.processors import top_k_top_p_filtering as top_k_top_p_filtering
    from puna.model.generation.strategies.constrained_scorer import (
        ConstrainedBeamSearchScorer as ConstrainedBeamSearchScorer,
    )
    from puna.model.generation.strategies.constraints import Constraint as Constraint
    from puna.model.generation.strategies.constraints import ConstraintListState as ConstraintListState
    from puna.model.generation.strategies.constraints import DisjunctiveConstraint as DisjunctiveConstraint
    from puna.model.generation.strategies.constraints import PhrasalConstraint as PhrasalConstraint
    from puna.model.generation.strategies.hypotheses import BeamHypotheses as BeamHypotheses
    from puna.model.generation.strategies.scorers import BeamScorer as BeamScorer
    from puna.model.generation.strategies.scorers import BeamSearchScorer as BeamSearchScorer
    from puna.model.generation.streamers import AsyncTextIteratorStreamer as AsyncTextIteratorStreamer
    from puna.model.generation.streamers import BaseStreamer as BaseStreamer
    from puna.model.generation.streamers import TextIteratorStreamer as TextIteratorStreamer
    from puna.model.generation.streamers import TextStreamer as TextStreamer
    from puna.model.huggingface.auto import AutoModel as AutoModel
    from puna.model.huggingface.auto import AutoModelForCausalLM as AutoModelForCausalLM
    from puna.model.huggingface.auto import AutoModelForQuestionAnswering as AutoModelForQuestionAnswering
    from puna.model.huggingface.auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
    from puna.model.huggingface.auto import AutoModelForTokenClassification as AutoModelForTokenClassification
    from puna.model.huggingface.caches import Cache as Cache
    from puna.model.huggingface.caches import DynamicCache as DynamicCache
    from puna.model.huggingface.caches import StaticCache as StaticCache
    from puna.model.huggingface.pipelines import pipeline as pipeline
    from puna.model.outputs import BaseModelOutputWithPast as BaseModelOutputWithPast
    from puna.model.outputs import CausalLMOutputWithPast as CausalLMOutputWithPast
    from puna.model.outputs import ModelOutput as ModelOutput
    from puna.model.outputs import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
    from puna.model.outputs import SequenceClassifierOutputWithPast as SequenceClassifierOutputWithPast
    from puna.model.outputs import TokenClassifierOutput as TokenClassifierOutput
    from puna.tokenizer import AddedToken as AddedToken
    from puna.tokenizer import AutoTokenizer as AutoTokenizer
    from puna.tokenizer import BatchEncoding as BatchEncoding
    from puna.tokenizer import CodeLlamaTokenizer as CodeLlamaTokenizer
    from puna.tokenizer import CodeLlamaTokenizerFast as CodeLlamaTokenizerFast
    from puna.tokenizer import LlamaTokenizer as LlamaTokenizer
    from puna.tokenizer import LlamaTokenizerFast as LlamaTokenizerFast
    from puna.tokenizer import PreTrainedTokenizerBase as PreTrainedTokenizerBase
    from puna.tokenizer import load_tokenizer as load_tokenizer
    from puna.training.api import TrainingResult as TrainingResult
    from puna.training.api import train as train

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the module that defines a public name on first use (PEP 562).

    `__all__` contains only names that can be imported, so that `from puna import *` works without PyTorch.
    """
    if name == "__all__":
        return [public for public in __dir__() if public not in NEED_TORCH or _has_torch()]
    module = MODULES.get(name)
    if module is None and (name in OF_TRANSFORMERS or name in WITHOUT_COUNTERPART):
        from puna.compat.forwarding import transformers_name

        return transformers_name(name)
    if module is None:
        raise AttributeError(f"module 'puna' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if exc.name != "torch":
            raise
        raise MissingNameError(_needs_torch(name)) from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*MODULES, "__version__"])


def _has_torch() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except ModuleNotFoundError:  # from an import hook
        return False


def _needs_torch(name: str) -> str:
    return f"puna.{name} needs PyTorch; install it with: pip install 'puna[torch]'"


class _MissingNames:
    """An import hook: `from puna import name` raises a clear error if `name` needs a library that is not installed.

    Python calls the hook because it searches for a module `puna.name` if the package has no such attribute.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        package, _, public = name.partition(".")
        if package == "puna" and public in NEED_TORCH and not _has_torch():
            raise MissingExtraError(_needs_torch(public))
        if package == "puna" and (public in OF_TRANSFORMERS or public in WITHOUT_COUNTERPART):
            from puna.compat.forwarding import missing_reason

            if reason := missing_reason(public):
                raise MissingExtraError(reason)


class _Package(ModuleType):
    """The type of this module: keeps the function `puna.convert` when the package `puna.convert` is imported.

    An import sets the package as an attribute of `puna`, which would replace the function of the same name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
sys.meta_path.append(_MissingNames)
