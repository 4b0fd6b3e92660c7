"""The forward pass of an assistant of transformers, for compatibility. T tokens, V vocabulary; there is one row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from puna.config import GenerationConfig
from puna.model.outputs import CausalLMOutputWithPast


def is_foreign_model(model: Any) -> bool:
    """Returns whether a model is one of transformers."""
    return not isinstance(model.generation_config, GenerationConfig)


def assistant_settings(model: Any) -> GenerationConfig:
    """Returns the generation settings of an assistant; in those of transformers, None is the default."""
    settings: GenerationConfig = model.generation_config
    if is_foreign_model(model):
        fields = {name: value for name, value in settings.to_dict().items() if value is not None}
        settings = GenerationConfig.from_dict(fields)
    return settings


class ForeignForward:
    """`Forward`, implemented by a model of transformers, whose cache is changed in place."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        cache: Any,
        keep: int = 1,
        *,
        attentions: bool = False,
        hidden_states: bool = False,
    ) -> CausalLMOutputWithPast:
        """See `Forward`. The model may have no argument for `keep`, so all logits are computed: (1, T, V)."""
        past = 0 if cache is None else int(cache.get_seq_length())
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]
        out = self._model(
            ids[:, past:], attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            output_attentions=attentions, output_hidden_states=hidden_states, return_dict=True,
        )  # fmt: skip
        return CausalLMOutputWithPast(logits=out.logits[:, -keep:], past_key_values=out.past_key_values)

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """See `Forward`."""
        cache.reorder_cache(rows)
        return cache

    def crop(self, cache: Any, length: int) -> Any:
        """See `Forward`."""
        excess = 0 if cache is None else int(cache.get_seq_length()) - length
        if excess > 0:
            cache.crop(-excess)  # transformers 5 refuses lengths
        return cache

    def past_key_values(self, cache: Any) -> None:
        """See `Forward`. The cache of an assistant is not returned."""
