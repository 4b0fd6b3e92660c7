"""Models that label each token: `LlamaForTokenClassification`, `LlamaForQuestionAnswering`.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.errors import RequestError
from puna.model.base import default_to
from puna.model.cache import LegacyCache
from puna.model.checks import check_answer_positions, check_classes
from puna.model.llama import LlamaModel
from puna.model.losses import mean_cross_entropy
from puna.model.outputs import BaseModelOutputWithPast, QuestionAnsweringModelOutput, TokenClassifierOutput
from puna.model.pretrained import LlamaPreTrainedModel


class LlamaForTokenClassification(LlamaPreTrainedModel):
    """`LlamaModel` with a linear head over the labels, applied to each token.

    In training, the head's inputs are dropped out with the probability `config.classifier_dropout`, else
    `config.hidden_dropout`, else 0.1.
    """

    head = "token_classification"
    loss_type = "ForTokenClassification"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
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
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Computes the logits of the labels of each token, (B, T, num_labels).

        Args:
            labels: (B, T) classes for cross-entropy; -100 ignores a token.
            num_items_in_batch: the number to divide the summed loss by, if several batches form one step.
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
        logits: Tensor = self.score(self.dropout(base.last_hidden_state))  # (B, T, labels)
        loss = None
        if labels is not None:
            check_classes(labels, tuple(logits.shape[:2]), logits.shape[2])
            loss = mean_cross_entropy(logits.flatten(0, 1), labels.flatten(), count=num_items_in_batch)
        out = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=base.hidden_states, attentions=base.attentions
        )
        return out if default_to(return_dict, self.config.use_return_dict) else out.to_tuple()


class LlamaForQuestionAnswering(LlamaPreTrainedModel):
    """`LlamaModel` with a linear head that scores each token as the first and as the last of the answer."""

    head = "question_answering"
    loss_type = "ForQuestionAnswering"
    base_model_prefix = "transformer"  # the prefix of names in files, as in transformers

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.transformer = LlamaModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_decoder(self) -> LlamaModel:
        """Returns the `LlamaModel`."""
        return self.transformer

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | float | None = None,
        **arguments: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Computes the logits of the answer's first and last token, each (B, T).

        Args:
            start_positions, end_positions: (B,) or (B, 1), the first and the last token of each answer, for the loss.
                Positions from T on are ignored: the answer was truncated. Negative ones count as 0.
            num_items_in_batch: the number to divide the summed loss by, if several batches form one step.
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, output_attentions,
                output_hidden_states, return_dict, arguments: as in `LlamaModel.forward`.

        Raises:
            RequestError: if only one of the positions is given, or their shape or type is invalid.
        """
        base: BaseModelOutputWithPast = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **arguments,
        )
        start, end = self.qa_outputs(base.last_hidden_state).unbind(-1)  # (B, T) each
        out = QuestionAnsweringModelOutput(
            loss=_answer_loss(start, end, start_positions, end_positions, num_items_in_batch),
            start_logits=start.contiguous(),
            end_logits=end.contiguous(),
            hidden_states=base.hidden_states,
            attentions=base.attentions,
        )
        return out if default_to(return_dict, self.config.use_return_dict) else out.to_tuple()


def _answer_loss(
    start: Tensor,
    end: Tensor,
    start_positions: Tensor | None,
    end_positions: Tensor | None,
    count: Tensor | float | None,
) -> Tensor | None:
    """Returns the mean cross-entropy of the starts and the ends of answers, for logits (B, T)."""
    if start_positions is None and end_positions is None:
        return None
    if start_positions is None or end_positions is None:
        raise RequestError("the loss needs both start_positions and end_positions; only one was given")
    losses = []
    for logits, positions in ((start, start_positions), (end, end_positions)):
        check_answer_positions(positions, len(logits))
        tokens = logits.shape[1]
        targets = positions.flatten().clamp(0, tokens)
        losses.append(mean_cross_entropy(logits, targets, tokens, count))
    return (losses[0] + losses[1]) / 2
