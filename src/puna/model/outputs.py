"""What the models return: dataclasses that also read like the tuples and the dictionaries of Hugging Face's outputs.

`out.logits`, `out["logits"]`, `out[0]`, `out[:2]` and `out.to_tuple()` all work; fields that are None do not exist for
the last four, so `out[0]` is the loss when labels were given and the logits otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from puna.model.cache import KVCache
from puna.model.trees import register_tree


@dataclass(eq=False)
class ModelOutput(Mapping[str, Any]):
    """Base of the outputs; iterating yields the names of the fields that are not None.

    Every output is a node of PyTorch's trees (`torch.utils._pytree`), its fields the branches: what looks for tensors
    in a module's output, such as the hooks of `fully_shard`, finds them. `KVCache` is one, too.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        register_tree(cls, lambda out: {name: getattr(out, name) for name in out}, lambda fields: cls(**fields))

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in list(self):
                raise KeyError(f"{type(self).__name__} holds {', '.join(self)}; not {key!r}")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in the order of their declaration."""
        return tuple(getattr(self, name) for name in self)


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """Output of `LlamaModel`.

    Attributes:
        last_hidden_state: (batch, tokens, hidden_size), after the final norm.
        past_key_values: keys and values of every layer, for the next call.
        hidden_states: layers + 1 tensors like `last_hidden_state`: the embeddings, the output of each layer but the
            last, and the last one's after the final norm.
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
        loss: mean cross-entropy of the next token in nats, float32, where labels were given.
        logits: (batch, tokens kept, vocab_size).
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
        loss: where labels were given, float32.
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
        scores: per new token (batch x num_return_sequences, vocab_size), the logits the token was chosen from, where
            `output_scores` asked for them.
        past_key_values: the cache after the last step.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    past_key_values: KVCache | None = None
