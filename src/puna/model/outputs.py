"""Outputs of the models: dataclasses that, like Hugging Face's, can also be read as tuples and dictionaries.

`out.logits`, `out["logits"]`, `out[0]`, `out[:2]` and `out.to_tuple()` all work. All but the first form skip fields
that are None, so `out[0]` is the loss if labels were given, else the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from puna.model.cache import KVCache
from puna.model.pytree import register_node


@dataclass(eq=False)
class ModelOutput(Mapping[str, Any]):
    """Base class of the outputs; iterating yields the names of the fields that are not None.

    Every output is registered as a node of PyTorch's pytrees (`torch.utils._pytree`), so that code that looks for
    tensors in a module's output, such as the hooks of `fully_shard`, finds them. `KVCache` is registered, too.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        register_node(cls, lambda out: {name: getattr(out, name) for name in out}, lambda fields: cls(**fields))

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in list(self):
                raise KeyError(f"{type(self).__name__} has no field {key!r}; it has {', '.join(self)}")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields that are not None, in the order of their declaration."""
        return tuple(getattr(self, name) for name in self)


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """Output of `LlamaModel`.

    Attributes:
        last_hidden_state: (batch, tokens, hidden_size), after the final norm.
        past_key_values: keys and values of every layer, for the next call.
        hidden_states: layers + 1 tensors shaped like `last_hidden_state`: the embeddings, the output of each layer but
            the last, and `last_hidden_state`.
        attentions: per layer (batch, heads, tokens, keys), the weights after softmax (and dropout, in training).
    """

    last_hidden_state: Tensor
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """Output of `LlamaForCausalLM`.

    Attributes:
        loss: mean cross-entropy of the next token in nats, float32; None without labels.
        logits: (batch, tokens selected by `logits_to_keep`, vocab_size).
        past_key_values, hidden_states, attentions: as in `BaseModelOutputWithPast`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class SequenceClassifierOutputWithPast(ModelOutput):
    """Output of `LlamaForSequenceClassification`.

    Attributes:
        loss: float32; None without labels.
        logits: (batch, num_labels).
        past_key_values, hidden_states, attentions: as in `BaseModelOutputWithPast`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """Output of `generate(return_dict_in_generate=True)`.

    Attributes:
        sequences: (batch x num_return_sequences, prompt + new tokens), int64.
        scores: per new token (batch x num_return_sequences, vocab_size), the logits that the token was chosen from, if
            `output_scores` was set.
        past_key_values: the cache after the last step.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    past_key_values: KVCache | None = None
