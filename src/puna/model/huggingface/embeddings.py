"""Embeddings and their head: accessors, and resizing the vocabulary as `PreTrainedModel` does."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from puna.errors import ArgumentError, RequestError, show
from puna.model.base import Decoder, LlamaBase, new_embedding
from puna.model.quantized import QuantEmbedding

_MEAN_SCALE = 1e-9
"""The covariance of the old rows is multiplied by this; transformers 5.x uses the same number."""

_MOST_ROWS = 2**31 - 1
"""The largest vocabulary: token ids are stored in 32 bits."""


def rows_like(old: Tensor, count: int) -> Tensor:
    """Returns new rows of a matrix (rows, width) from a normal distribution around the mean of its rows.

    The covariance is that of the old rows times 1e-9, so that the new tokens hardly change the probabilities of others
    (Hewitt, "Initializing new word embeddings for pretrained language models", 2021). If this covariance is not
    positive definite, all new rows are the mean.
    """
    wide = old.detach().float()
    mean = wide.mean(dim=0)
    centred = wide - mean
    covariance = centred.T @ centred * (_MEAN_SCALE / len(wide))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed) or not torch.isfinite(factor).all():
        return mean.expand(count, -1).to(old.dtype)
    new: Tensor = mean + torch.randn(count, len(mean), device=old.device) @ factor.T
    return new.to(old.dtype)


class Embeddings(LlamaBase):
    """Methods on the token embeddings and the language-model head."""

    @property
    def base_model(self) -> Decoder:
        """The `LlamaModel`; transformers' other name for `get_decoder()`."""
        return self.get_decoder()

    def get_encoder(self, modality: str | None = None) -> Embeddings:
        """Returns this model, since LLaMA has no encoder; for compatibility with transformers 5.x."""
        if modality is not None:
            raise RequestError(f"modality is {show(modality)}; a LLaMA model reads only text: omit the argument")
        return self

    def set_encoder(self, encoder: Any, modality: str | None = None) -> NoReturn:
        """Raises RequestError, since LLaMA has no encoder."""
        raise RequestError("a LLaMA model has no encoder; use set_decoder to replace its LlamaModel")

    def set_decoder(self, decoder: Any) -> None:
        """Replaces the `LlamaModel` of a model with a head."""
        if not hasattr(self, self.base_model_prefix):
            raise RequestError(f"{type(self).__name__} is itself the decoder; replace it in the model that uses it")
        self.add_module(self.base_model_prefix, decoder)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embeddings."""
        self.get_decoder().embed_tokens = value  # type: ignore[assignment]

    def get_position_embeddings(self) -> NoReturn:
        """Raises NotImplementedError, as in transformers: LLaMA has no position embeddings."""
        raise NotImplementedError("a LLaMA model has no position embeddings; RoPE rotates queries and keys instead")

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> NoReturn:
        """Raises NotImplementedError, as in transformers: LLaMA has no position embeddings."""
        raise NotImplementedError(
            "a LLaMA model has no position embeddings; set config.rope_scaling before loading for longer texts"
        )

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = False
    ) -> nn.Embedding:
        """Resizes embeddings and head to `new_num_tokens` rows; additional rows are initialised at random.

        Args:
            new_num_tokens: number of rows; by default the current number.
            pad_to_multiple_of: the number of rows is rounded up to a multiple of this.
            mean_resizing: draw additional rows around the mean of the old rows (the default of transformers 5.x), not
                from normal(0, initializer_range) (4.34).

        Returns:
            The embeddings. `config.vocab_size` is set to their number of rows.

        Raises:
            ArgumentError: if `pad_to_multiple_of` is not an integer.
            RequestError: if the number of rows is below 1 or does not include the padding id.
        """
        old = self.get_input_embeddings()
        if new_num_tokens is not None and (
            isinstance(new_num_tokens, bool | type | Tensor) or not hasattr(new_num_tokens, "__index__")
        ):
            raise ArgumentError(
                f"new_num_tokens is {show(new_num_tokens)}; it must be an integer, such as len(tokenizer)"
            )
        rows = _round_up(old.num_embeddings if new_num_tokens is None else int(new_num_tokens), pad_to_multiple_of)
        padding = self.config.pad_token_id
        if rows > _MOST_ROWS:
            raise RequestError(f"the embeddings would have {show(rows)} rows; the limit is {_MOST_ROWS}")
        if rows < 1 or (padding is not None and rows <= padding):
            raise RequestError(
                f"new_num_tokens is {rows}; it must be at least 1 and greater than pad_token_id, {padding}"
            )
        if new_num_tokens is None and pad_to_multiple_of is None:
            return old
        if isinstance(old, QuantEmbedding) and rows != old.num_embeddings:
            raise RequestError("the embeddings are packed and cannot be resized; call dequantize() first")
        self.set_input_embeddings(self._get_resized_embeddings(old, rows, None, mean_resizing))
        head = self.get_output_embeddings()
        if head is not None and not isinstance(old, QuantEmbedding):
            self.set_output_embeddings(self._get_resized_lm_head(head, rows, False, mean_resizing))
            self.tie_weights()
        self.config.vocab_size = self.vocab_size = rows
        return self.get_input_embeddings()

    def _get_resized_embeddings(
        self,
        old_embeddings: nn.Embedding,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = False,
    ) -> nn.Embedding:
        """Returns embeddings with another number of rows; the same object if the number does not change."""
        rows = _round_up(
            old_embeddings.num_embeddings if new_num_tokens is None else new_num_tokens, pad_to_multiple_of
        )
        if rows == old_embeddings.num_embeddings:
            return old_embeddings
        if not isinstance(old_embeddings, nn.Embedding):
            raise ArgumentError(f"the embeddings are a {type(old_embeddings).__name__}; they must be an nn.Embedding")
        padding = old_embeddings.padding_idx
        padding = None if padding is None or padding >= rows else padding
        new = new_embedding(rows, old_embeddings.embedding_dim, padding).to(old_embeddings.weight)
        self._copy_rows(old_embeddings, new, mean_resizing)
        return new

    def _get_resized_lm_head(
        self,
        old_lm_head: nn.Linear,
        new_num_tokens: int | None = None,
        transposed: bool = False,
        mean_resizing: bool = False,
    ) -> nn.Linear:
        """Returns a head with another number of rows; the same object if the number does not change."""
        if transposed:
            raise RequestError("transposed is True; LLaMA's head has the shape (vocabulary, hidden): omit the argument")
        if new_num_tokens in (None, old_lm_head.out_features):
            return old_lm_head
        if not isinstance(old_lm_head, nn.Linear):
            raise ArgumentError(f"the head is a {type(old_lm_head).__name__}; it must be an nn.Linear")
        weight = old_lm_head.weight
        new = nn.Linear(
            old_lm_head.in_features,
            new_num_tokens or 0,
            bias=old_lm_head.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        self._copy_rows(old_lm_head, new, mean_resizing)
        return new

    def _copy_rows(self, old: nn.Embedding | nn.Linear, new: nn.Embedding | nn.Linear, mean_resizing: bool) -> None:
        self._init_weights(new)
        common = min(old.weight.shape[0], new.weight.shape[0])
        for name, parameter in new.named_parameters():
            source = old.get_parameter(name)
            with torch.no_grad():
                if mean_resizing and name == "weight" and common < len(parameter):
                    parameter[common:] = rows_like(source, len(parameter) - common)
                parameter[:common] = source[:common]
            parameter.requires_grad_(source.requires_grad)
        if hook := getattr(old, "_hf_hook", None):  # accelerate's hook, which moves inputs between devices
            _move_hook(new, hook)


def _move_hook(module: nn.Module, hook: Any) -> None:
    from accelerate.hooks import add_hook_to_module

    add_hook_to_module(module, hook)


def _round_up(rows: int, multiple: int | None) -> int:
    if multiple is None:
        return rows
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise ArgumentError(
            f"Asking to pad the embedding matrix to a multiple of `{multiple}`, which is not and integer. Please make "
            "sure to pass an integer, 1 or more, as pad_to_multiple_of"
        )
    return -(-rows // multiple) * multiple
