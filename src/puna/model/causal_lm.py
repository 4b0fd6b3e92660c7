"""`LlamaForCausalLM`: the logits of the next token, and their loss. B batch, T tokens, D hidden, V vocabulary."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.errors import RequestError
from puna.model.base import default_to
from puna.model.cache import KVCache, LegacyCache, cached_tokens
from puna.model.checks import check_logits_to_keep
from puna.model.generation.mixin import GenerationMixin
from puna.model.llama import LlamaModel
from puna.model.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from puna.model.pretrained import LlamaPreTrainedModel


class LlamaForCausalLM(GenerationMixin, LlamaPreTrainedModel):
    """`LlamaModel` and a linear head over the vocabulary."""

    head = "lm"
    loss_type = "ForCausalLM"
    accepts_loss_kwargs: ClassVar[bool] = True
    _tied_weights_keys: ClassVar[list[str] | None] = ["lm_head.weight"]

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.vocab_size = config.vocab_size
        self.post_init()

    def get_decoder(self) -> LlamaModel:
        """Returns the `LlamaModel`."""
        return self.model

    def get_output_embeddings(self) -> nn.Linear:
        """Returns the head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_logits_to_keep: int | None = None,
        num_items_in_batch: Tensor | float | None = None,
        **arguments: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Computes the logits of the next token, in the dtype of the weights.

        `config.pretraining_tp` is ignored: multiplying by slices of the matrices, as in pretraining, would change the
        result only by rounding.

        Args:
            labels: (B, T), aligned with `input_ids`, or (B, kept) with `logits_to_keep`; -100 ignores one.
            logits_to_keep: number of last tokens whose logits are computed (0: all), or indices (kept,) of the tokens.
            num_logits_to_keep: the older name of `logits_to_keep`.
            num_items_in_batch: the number to divide the summed loss by, if several batches form one step.
            arguments: further arguments of `loss_function` (`shift_labels`, `ignore_index`) or `LlamaModel.forward`.
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_attentions,
                output_hidden_states, return_dict: as in `LlamaModel.forward`.
        """
        loss_arguments: dict[str, Any] = {
            name: arguments.pop(name) for name in ("shift_labels", "ignore_index") if name in arguments
        }
        keep = logits_to_keep if num_logits_to_keep is None else num_logits_to_keep
        check_logits_to_keep(keep)
        base: BaseModelOutputWithPast = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **arguments,
        )
        states = base.last_hidden_state  # (B, T, D)
        kept = states[:, -keep:] if isinstance(keep, int) else states[:, keep]  # (B, kept, D)
        logits = self.logits(kept)  # (B, kept, V)
        if isinstance(labels, Tensor) and labels.shape[1:] == states.shape[1:2] != logits.shape[1:2]:
            raise RequestError(
                f"logits_to_keep is {keep}, but labels cover all {labels.shape[1]} tokens; "
                "give the labels of the kept tokens"
            )
        loss = None
        if labels is not None or loss_arguments.get("shift_labels") is not None:
            loss_arguments |= {"vocab_size": self.config.vocab_size, "num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits=logits, labels=labels, **loss_arguments)
        out = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=base.past_key_values,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return out if default_to(return_dict, self.config.use_return_dict) else out.to_tuple()

    def logits(self, states: Tensor) -> Tensor:
        """Returns the logits, (..., V), of hidden states, (..., D)."""
        logits: Tensor = self.lm_head(states)
        return logits

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: LegacyCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> dict[str, Any]:
        """Returns the arguments of forward for the next step: the uncached tokens, with positions from the mask.

        Args:
            input_ids: (B, all tokens so far). The cache may also hold tokens that precede `input_ids` (a trained
                prefix). If `attention_mask` does not cover them, the caller extends it before it calls forward.
            past_key_values: the cache.
            attention_mask: (B, cached + new tokens).
            inputs_embeds: replaces `input_ids` while the cache is empty.

        Raises:
            RequestError: if the mask does not match the prompt.
        """
        past = cached_tokens(past_key_values)
        embeds = inputs_embeds if inputs_embeds is not None and not past else None
        tokens = input_ids.shape[1]
        total = tokens if attention_mask is None else attention_mask.shape[1]
        if embeds is None and attention_mask is not None and not tokens <= total <= past + tokens:
            raise RequestError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; with {tokens} ids and {past} cached tokens "
                f"its width must be {tokens}, or up to {past + tokens} if cached tokens are not among the ids"
            )
        new = max(1, total - past)  # with a prefix outside the mask, the last token is the new one
        if position_ids is None and attention_mask is not None:
            position_ids = attention_mask.long().cumsum(-1) - 1
            position_ids = position_ids.masked_fill(attention_mask == 0, 1)[:, -new:]
        return {
            "input_ids": input_ids[:, -new:] if embeds is None else None,
            "inputs_embeds": embeds,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }

    @staticmethod
    def _reorder_cache(past_key_values: LegacyCache, beam_idx: Tensor) -> KVCache:
        """Returns the cache with its rows selected by `beam_idx`; named as in transformers."""
        cache = past_key_values if isinstance(past_key_values, KVCache) else KVCache(past_key_values)
        return cache.reorder(beam_idx)
