"""The PyTorch model: the readable reference implementation of LLaMA, used for training, on GPUs and in parity tests."""

from puna.compat.transformers_bases import inherit_when_imported
from puna.model.backend import TorchBackend
from puna.model.cache import KVCache
from puna.model.causal_lm import LlamaForCausalLM
from puna.model.classification import LlamaForSequenceClassification
from puna.model.generation.outputs import GenerateOutput
from puna.model.llama import LlamaModel
from puna.model.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from puna.model.pretrained import LlamaPreTrainedModel
from puna.model.token_heads import LlamaForQuestionAnswering, LlamaForTokenClassification

PreTrainedModel = LlamaPreTrainedModel
"""The name of the base class in transformers."""

inherit_when_imported(LlamaPreTrainedModel, "transformers.modeling_utils", "PreTrainedModel")

__all__ = [
    "BaseModelOutputWithPast", "CausalLMOutputWithPast", "GenerateOutput", "KVCache", "LlamaForCausalLM",
    "LlamaForQuestionAnswering", "LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaModel",
    "LlamaPreTrainedModel", "ModelOutput", "PreTrainedModel", "QuestionAnsweringModelOutput",
    "SequenceClassifierOutputWithPast", "TokenClassifierOutput", "TorchBackend",
]  # fmt: skip
