"""Base class of the models: configuration, kind of head, initial weights, and the embeddings that a head may share."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from puna.checkpoint.names import Head
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import ArgumentError, ConfigError, RequestError, show
from puna.model.quantized import QuantEmbedding, QuantLinear


class Decoder(Protocol):
    """The attributes of `LlamaModel` that the base class needs, because it cannot import the class."""

    embed_tokens: nn.Embedding
    layers: nn.ModuleList
    _gradient_checkpointing: bool


def default_to(value: Any, default: bool) -> bool:
    """Returns an argument of forward, or the configuration's default if it is None.

    Raises:
        RequestError: the argument is a tensor of several elements, which is neither true nor false.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise RequestError(
            f"a tensor of shape {tuple(value.shape)} was passed for use_cache, return_dict, output_attentions or "
            "output_hidden_states; each must be True, False or None. Check the order of the arguments"
        )
    return default if value is None else bool(value)


def new_embedding(rows: int, width: int, padding_idx: int | None) -> nn.Embedding:
    """Returns an embedding with uninitialised weights.

    `nn.Embedding(rows, width)` initialises weights, which on the meta device makes PyTorch import its compiler (2.5 s).
    """
    empty = torch.empty(rows, width)
    embedding: nn.Embedding = nn.Embedding.from_pretrained(empty, False, padding_idx)  # type: ignore[no-untyped-call]
    return embedding


def check_attention(name: object) -> str:
    """Returns the name of an implementation of attention.

    Raises:
        ConfigError: it is neither "sdpa" nor "eager".
    """
    if name in ("sdpa", "eager"):
        return str(name)
    flash = "; PyTorch's flash kernels are part of 'sdpa'" if "flash" in str(name) else ""
    raise ConfigError(
        f"attn_implementation is {show(name)}; it must be 'sdpa', which selects flash kernels automatically, or "
        f"'eager', which can return the attention weights{flash}"
    )


class LlamaBase(nn.Module):
    """Base class of all models: the configuration, initial weights, device, type and embeddings.

    Args:
        config: the model's configuration; its fields are checked again.

    Raises:
        ArgumentError: if `config` is not a LlamaConfig.
        ConfigError: if a field has a value that no LLaMA model can have.
    """

    base_model_prefix = "model"
    """The name of the attribute that holds the `LlamaModel` of a model with a head."""
    head: ClassVar[Head] = "none"
    """The kind of head, with the same names as `Checkpoint.head`."""
    generation_config: GenerationConfig
    """The defaults of `generate()`; None if the class has no `generate()`."""

    def __init__(self, config: LlamaConfig | Any) -> None:
        nn.Module.__init__(self)  # not super(): transformers' base class may be next, and has another signature
        if not isinstance(config, LlamaConfig):
            name = type(self).__name__
            raise ArgumentError(
                f"config is a {type(config).__name__}; it must be a LlamaConfig. To load a model from files, use "
                f"{name}.from_pretrained(path)"
            )
        config.validate()  # fields may have been assigned after its construction
        self.config: LlamaConfig = config
        if self.can_generate():
            self.generation_config = GenerationConfig.from_model_config(config)
        else:
            self.generation_config = None  # type: ignore[assignment]
        self.attn_implementation = check_attention(config._attn_implementation or "sdpa")

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises a linear layer or embedding; does nothing to other modules and on the meta device.

        Weights are normal(0, initializer_range), biases and the padding row 0. transformers does the same, although
        its documentation mentions a truncated normal distribution.
        """
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.is_meta:
            return
        nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @classmethod
    def can_generate(cls) -> bool:
        """Returns whether the class has `generate()`."""
        return cls.head == "lm"

    def get_decoder(self) -> Decoder:
        """Returns the `LlamaModel`."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the token embeddings."""
        return self.get_decoder().embed_tokens

    def get_output_embeddings(self) -> nn.Linear | None:
        """Returns the language-model head; None for a model without one."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the language-model head of a model that has one."""
        raise NotImplementedError

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Makes the head share the embedding matrix if `config.tie_word_embeddings` is set.

        Args:
            missing_keys, recompute_mapping: have no effect; arguments of transformers 5.x.
        """
        head, embeddings = self.get_output_embeddings(), self.get_input_embeddings()
        if head is None or not self.config.tie_word_embeddings:
            return
        if isinstance(embeddings, QuantEmbedding):
            self.set_output_embeddings(QuantLinear(embeddings.packed))
        else:
            head.weight = embeddings.weight
            head.out_features = embeddings.num_embeddings
