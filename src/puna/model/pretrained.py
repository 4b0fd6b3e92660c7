"""`LlamaPreTrainedModel`: the base class of the models, with the interface of transformers' `PreTrainedModel`."""

from __future__ import annotations

from typing import Any

from torch import nn

from puna.config import LlamaConfig
from puna.config.pruning import pruned_heads
from puna.model.huggingface.embeddings import Embeddings
from puna.model.huggingface.loading import FromPretrained
from puna.model.huggingface.pruning import Pruning
from puna.model.huggingface.saving import Saving
from puna.model.huggingface.training import Training


class LlamaPreTrainedModel(FromPretrained, Saving, Embeddings, Pruning, Training):
    """Base class of `LlamaModel` and the models with a head, with Hugging Face's name.

    A derived class creates its modules in `__init__` and then calls `post_init()`.

    Args:
        config: the model's configuration; its fields are checked again.

    Raises:
        ArgumentError: if `config` is not a LlamaConfig.
        ConfigError: if a field has a value that no LLaMA model can have.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.name_or_path = ""
        self.warnings_issued: dict[str, Any] = {}
        """Notices that are given once for this model, by key; libraries set keys, too."""

    def post_init(self) -> None:
        """Initialises new modules, ties weights, removes pruned heads, and turns on what the configuration requests."""
        self.init_weights()
        self._backward_compatibility_gradient_checkpointing()

    def init_weights(self) -> None:
        """Initialises the modules that were not initialised before, ties weights and removes `config.pruned_heads`."""
        if heads := pruned_heads(self.config):
            self._prune_heads(heads)
        self.initialize_weights()
        self.tie_weights()

    def initialize_weights(self) -> None:
        """Initialises the modules that were not initialised before."""
        self.apply(self._initialize_weights)

    def _initialize_weights(self, module: nn.Module) -> None:
        """Initialises a module once; a module without memory for its weights is initialised later."""
        if vars(module).get("_is_hf_initialized"):
            return
        self._init_weights(module)
        if not any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            vars(module)["_is_hf_initialized"] = True
