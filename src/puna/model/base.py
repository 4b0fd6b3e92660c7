"""Base class of the models, without files: initial weights, embeddings, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from puna.checkpoint.names import Head
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import ConfigError, RequestError
from puna.model.quantized import PackedMatrix, QuantEmbedding, QuantLinear, dequantize_modules

Self = TypeVar("Self", bound="LlamaBase")


class Decoder(Protocol):
    """The attributes of `LlamaModel` that the base class needs, because it cannot import the class."""

    embed_tokens: nn.Embedding
    _gradient_checkpointing: bool


def default_to(value: bool | None, default: bool) -> bool:
    """Returns an argument of forward, or the configuration's default if it is None."""
    return default if value is None else value


def _require_grad(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    output.requires_grad_(True)


def new_embedding(rows: int, width: int, padding_idx: int | None) -> nn.Embedding:
    """Returns an embedding with uninitialised weights.

    `nn.Embedding(rows, width)` initialises weights, which on the meta device makes PyTorch import its compiler (2.5 s).
    """
    empty = torch.empty(rows, width)
    embedding: nn.Embedding = nn.Embedding.from_pretrained(empty, False, padding_idx)  # type: ignore[no-untyped-call]
    return embedding


class LlamaBase(nn.Module):
    """Everything that the models have in common except files.

    Args:
        config: the model's configuration; its fields are checked again.

    Raises:
        ConfigError: if a field has a value that no LLaMA model can have.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]  # read by other libraries that shard models
    head: ClassVar[Head] = "none"
    """The kind of head, with the same names as `Checkpoint.head`."""

    def __init__(self, config: LlamaConfig) -> None:
        nn.Module.__init__(self)  # not super(): transformers' base class may be next, and has another signature
        config.validate()  # fields may have been assigned after its construction
        self.config = config
        self.name_or_path = ""
        self.generation_config = GenerationConfig.from_model_config(config)
        self._input_gradients: RemovableHandle | None = None
        self.attn_implementation: str = config.extra.get("attn_implementation") or "sdpa"
        if self.attn_implementation not in ("sdpa", "eager"):
            raise ConfigError(
                f"attn_implementation is {self.attn_implementation!r}; it must be 'sdpa', which selects flash kernels "
                "automatically, or 'eager'"
            )

    def init_weights(self, module: nn.Module) -> None:
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
        return next(self.parameters()).dtype

    @classmethod
    def can_generate(cls) -> bool:
        """Returns whether the class has `generate()`."""
        return cls.head == "lm"

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Returns the number of parameters; tied weights count once. `exclude_embeddings` also excludes a tied head.

        Values of packed matrices count as parameters that cannot be trained.
        """
        embeddings = self.get_input_embeddings()
        excluded = (
            {id(part) for part in (*embeddings.parameters(), *embeddings.modules())} if exclude_embeddings else ()
        )
        sizes = [
            p.numel() for p in self.parameters() if id(p) not in excluded and (p.requires_grad or not only_trainable)
        ]
        if not only_trainable:
            packed = [m for m in self.modules() if isinstance(m, PackedMatrix) and id(m) not in excluded]
            sizes += [matrix.rows * matrix.columns for matrix in packed]
        return sum(sizes)

    # ---- embeddings

    def get_decoder(self) -> Decoder:
        """Returns the `LlamaModel`."""
        raise NotImplementedError

    @property
    def base_model(self) -> Decoder:
        """The `LlamaModel`; transformers' other name for `get_decoder()`."""
        return self.get_decoder()

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the token embeddings."""
        return self.get_decoder().embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embeddings."""
        self.get_decoder().embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """Returns the language-model head; None for a model without one."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the language-model head of a model that has one."""
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Makes the head share the embedding matrix if `config.tie_word_embeddings` is set."""
        head, embeddings = self.get_output_embeddings(), self.get_input_embeddings()
        if head is None or not self.config.tie_word_embeddings:
            return
        if isinstance(embeddings, QuantEmbedding):
            self.set_output_embeddings(QuantLinear(embeddings.packed))
        else:
            head.weight = embeddings.weight

    def dequantize(self: Self) -> Self:
        """Replaces matrices that stayed packed (`keep_quantized=True`) by float ones of the model's type; returns self.

        The result is the model that `from_pretrained` returns without `keep_quantized`.
        """
        dequantize_modules(self, self.dtype)
        return self

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Resizes embeddings and head to `new_num_tokens` rows; additional rows are initialised at random.

        Args:
            new_num_tokens: number of rows; by default the current number.
            pad_to_multiple_of: the number of rows is rounded up to a multiple of this.

        Returns:
            The embeddings. `config.vocab_size` is set to their number of rows.
        """
        old = self.get_input_embeddings()
        rows = old.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        padding = self.config.pad_token_id
        if rows < 1 or (padding is not None and rows <= padding):
            raise RequestError(
                f"new_num_tokens is {rows}; it must be at least 1 and greater than pad_token_id, {padding}"
            )
        if rows == old.num_embeddings:
            return old
        if isinstance(old, QuantEmbedding):
            raise RequestError("the embeddings are packed and cannot be resized; call dequantize() first")
        new = new_embedding(rows, self.config.hidden_size, padding).to(old.weight)
        self._copy_rows(old, new)
        self.set_input_embeddings(new)
        head = self.get_output_embeddings()
        if head is not None:
            resized = nn.Linear(head.in_features, rows, bias=False, device=head.weight.device, dtype=head.weight.dtype)
            self._copy_rows(head, resized)
            head.weight, head.out_features = resized.weight, rows
            self.tie_weights()
        self.config.vocab_size = rows
        return new

    def _copy_rows(self, old: nn.Embedding | nn.Linear, new: nn.Embedding | nn.Linear) -> None:
        self.init_weights(new)
        rows = min(old.weight.shape[0], new.weight.shape[0])
        with torch.no_grad():
            new.weight[:rows] = old.weight[:rows]
        new.weight.requires_grad_(old.weight.requires_grad)

    # ---- training

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Saves memory in training by computing each layer again in the backward pass; forward returns no cache.

        Args:
            gradient_checkpointing_kwargs: None or {"use_reentrant": False}. Re-entrant checkpointing is not supported,
                because it loses gradients if the embeddings are frozen.
        """
        if dict(gradient_checkpointing_kwargs or {}) not in ({}, {"use_reentrant": False}):
            raise RequestError(
                f"gradient_checkpointing_kwargs is {gradient_checkpointing_kwargs!r}; it must be None or "
                "{'use_reentrant': False}"
            )
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keeps the activations of all layers for the backward pass, which is the default."""
        self.gradient_checkpointing = False

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is on; stored in the decoder, for all models that share it."""
        return self.get_decoder()._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.get_decoder()._gradient_checkpointing = value

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Read-only alias of `gradient_checkpointing`."""
        return self.gradient_checkpointing

    def enable_input_require_grads(self) -> None:
        """Makes the embedded tokens require gradients, for training adapters with frozen embeddings."""
        self.disable_input_require_grads()
        self._input_gradients = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Reverts `enable_input_require_grads`."""
        if self._input_gradients is not None:
            self._input_gradients.remove()
            self._input_gradients = None
