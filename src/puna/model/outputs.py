"""Outputs of the models: dataclasses that are also ordered dictionaries and can be read as tuples, like Hugging Face's.

`out.logits`, `out["logits"]`, `out[0]`, `out[:2]` and `out.to_tuple()` all work. All but the first form skip fields
that are None, so `out[0]` is the loss if labels were given, else the logits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from puna.compat.transformers_bases import inherit_when_imported
from puna.errors import RequestError
from puna.model.cache import KVCache
from puna.model.pytree import register_node


class ModelOutput(OrderedDict[str, Any]):
    """Base class of the outputs; a subclass is a dataclass whose fields have defaults.

    The keys are the names of the fields that are not None, in the order of their declaration. Assigning a field or an
    item changes both; assigning None removes the key. Items may have other names than the fields.

    If only the first field is given, and it is a mapping or an iterable of (name, value) pairs, it holds the fields:
    `type(out)(dict(out))` is a copy. Libraries that convert or move the tensors of an output rebuild it in this way.

    Every output is registered as a node of PyTorch's pytrees (`torch.utils._pytree`), so that code that looks for
    tensors in a module's output, such as the hooks of `fully_shard`, finds them. `KVCache` is registered, too.

    The methods name `OrderedDict` and not `super()`, because transformers' class may be the next base.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        OrderedDict.__init_subclass__(**arguments)
        _register(cls)

    def __post_init__(self) -> None:
        """Replaces the first field by the pairs that it holds; dataclasses call this after `__init__`."""
        first = next(iter(self._fields()))
        pairs = _pairs(self[first]) if list(self) == [first] else None
        if pairs is not None:
            self[first] = None
            for name, value in pairs:
                self[name] = value

    @classmethod
    def _fields(cls) -> Iterable[str]:
        """Returns the names of the declared fields, in order."""
        return getattr(cls, "__dataclass_fields__", {})

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(f"{type(self).__name__} has no field {key!r}; it has {', '.join(self)}")
        return OrderedDict.__getitem__(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)
        if value is not None:
            OrderedDict.__setitem__(self, key, value)
        elif key in self:
            OrderedDict.__delitem__(self, key)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._fields() or name in self:
            self[name] = value
        else:
            object.__setattr__(self, name, value)

    def __delitem__(self, key: str) -> NoReturn:
        raise RequestError(f"{type(self).__name__} does not allow deletion; set {key!r} to None instead")

    def _no_change(self, *arguments: Any, **keywords: Any) -> NoReturn:
        raise RequestError(f"{type(self).__name__} has fixed fields; assign an attribute or an item instead")

    clear = pop = popitem = setdefault = update = _no_change

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies the fields, then other items."""
        return _rebuild, (type(self), dict(self))

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values that are not None, in the order of the keys."""
        return tuple(self.values())


def _rebuild(kind: type[ModelOutput], items: dict[str, Any]) -> ModelOutput:
    out = kind()
    for name, value in items.items():
        out[name] = value
    return out


def _register(kind: type[ModelOutput]) -> None:
    register_node(kind, dict, lambda items: _rebuild(kind, items))


_register(ModelOutput)
inherit_when_imported(ModelOutput, "transformers.utils.generic", "ModelOutput")


def _pairs(value: Any) -> Iterable[tuple[str, Any]] | None:
    """Returns the (name, value) pairs that `value` holds; None if it is a value itself.

    Raises:
        RequestError: if some elements are pairs and others are not.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, Tensor | str) or not isinstance(value, Iterable):
        return None
    elements = list(value)
    is_pair = [isinstance(e, tuple | list) and len(e) == 2 and isinstance(e[0], str) for e in elements]
    if elements and is_pair[0] and not all(is_pair):
        raise RequestError(f"{elements[is_pair.index(False)]!r} is not a (name, value) pair, but earlier elements are")
    return elements if elements and is_pair[0] else None


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

    last_hidden_state: Tensor = None  # type: ignore[assignment]  # None only while a library rebuilds the output
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
class TokenClassifierOutput(ModelOutput):
    """Output of `LlamaForTokenClassification`.

    Attributes:
        loss: float32; None without labels.
        logits: (batch, tokens, num_labels).
        hidden_states, attentions: as in `BaseModelOutputWithPast`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """Output of `LlamaForQuestionAnswering`.

    Attributes:
        loss: mean of the cross-entropies of the start and the end, float32; None without positions.
        start_logits, end_logits: (batch, tokens), of the first and the last token of the answer.
        hidden_states, attentions: as in `BaseModelOutputWithPast`.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
