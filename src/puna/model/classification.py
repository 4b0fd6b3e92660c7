"""`LlamaForSequenceClassification`: a text's label, computed from its last token. B batch, T tokens, D hidden."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.model.base import default_to
from puna.model.cache import LegacyCache
from puna.model.checks import check_classes, check_label_shape, check_tensor
from puna.model.llama import LlamaModel
from puna.model.losses import mean_cross_entropy
from puna.model.outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast
from puna.model.pretrained import LlamaPreTrainedModel


class LlamaForSequenceClassification(LlamaPreTrainedModel):
    """`LlamaModel` with a linear head over the labels, applied to the last token of each text."""

    head = "classification"
    loss_type = "ForSequenceClassification"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def get_decoder(self) -> LlamaModel:
        """Returns the `LlamaModel`."""
        return self.model

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
        num_items_in_batch: Tensor | float | None = None,
        **arguments: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Computes the logits of the labels, (B, num_labels).

        Args:
            labels: (B,) classes for cross-entropy; (B,) or (B, num_labels) numbers for the mean squared error of a
                regression; or (B, num_labels) floats 0 and 1 for several labels per text. `config.problem_type` selects
                the loss. If it is None, the first labels set it: regression if num_labels is 1, else by their type.
            num_items_in_batch: the number to divide the summed cross-entropy by, if several batches form one step.
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_attentions,
                output_hidden_states, return_dict, arguments: as in `LlamaModel.forward`.
        """
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
        last = self._last_tokens(input_ids, attention_mask, states)
        logits: Tensor = self.score(states[torch.arange(len(states), device=states.device), last])  # (B, labels)
        out = SequenceClassifierOutputWithPast(
            loss=None if labels is None else self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=base.past_key_values,
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return out if default_to(return_dict, self.config.use_return_dict) else out.to_tuple()

    def _last_tokens(self, input_ids: Tensor | None, attention_mask: Tensor | None, states: Tensor) -> Tensor:
        """Returns the index of the last token of each text, (B,), from the mask, else the padding id, else T - 1.

        The mask takes precedence because the padding id may also occur in the text (it is often eos).
        """
        tokens = states.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2:
            not_padding = attention_mask[:, -tokens:].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            not_padding = input_ids != self.config.pad_token_id
        else:
            not_padding = states.new_ones(states.shape[:2], dtype=torch.bool)
        index = torch.arange(tokens, device=states.device)
        last = (index * not_padding.to(states.device)).max(dim=1).values
        return torch.where(not_padding.any(dim=1).to(states.device), last, tokens - 1)

    def _loss(self, logits: Tensor, labels: Tensor, count: Tensor | float | None) -> Tensor:
        check_tensor("labels", labels)
        logits, labels = logits.float(), labels.to(logits.device)
        column = (len(logits), 1)
        if self.config.problem_type is None:  # saved with the model: it selects the activation of the probabilities
            several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            self.config.problem_type = "regression" if self.num_labels == 1 else several
        problem = self.config.problem_type
        if problem == "regression":
            labels = labels[:, None] if logits.shape == column and labels.shape == column[:1] else labels
            check_label_shape(labels, tuple(logits.shape))
            return F.mse_loss(logits, labels.float())
        if problem == "single_label_classification":
            labels = labels[:, 0] if labels.shape == column else labels
            check_classes(labels, (len(logits),), logits.shape[1])
            return mean_cross_entropy(logits, labels, count=count)
        check_label_shape(labels, tuple(logits.shape))
        return F.binary_cross_entropy_with_logits(logits, labels.float())
