"""Attributes of a configuration, with the names and defaults that Hugging Face's `PretrainedConfig` gives them."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from puna.config.base_defaults import DEFAULTS, GENERATION
from puna.config.checks import dtype_name, text_value, torch_dtype
from puna.config.labels import read_labels
from puna.errors import ArgumentError, ConfigError, show

if TYPE_CHECKING:
    from typing_extensions import Self

_RESERVED = frozenset({"attribute_map", "model_type"})
"""Class attributes that a key of a file must not hide."""

_SHARED_FIELDS = frozenset(
    {"id2label", "label2id", "architectures", "problem_type", "return_dict", "output_hidden_states",
     "output_attentions", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"}
)  # fmt: skip
"""Attributes of every configuration that puna's models use."""


class ConfigAttributes:
    """Base class of configurations. Every argument becomes an attribute; unset attributes have their defaults.

    `vars` of a configuration has the keys that it has in transformers 4.34.

    Args:
        num_labels: number of classes of a classification head; by default the size of `id2label`, or 2 without it.
        id2label, label2id: names of the classes.
        dtype: name of the weights' type, such as "bfloat16", or a `torch.dtype`; `torch_dtype` is its older name.
        name_or_path: where the configuration came from.
        attn_implementation: "sdpa" or "eager".
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}
    """Other names of attributes."""
    keys_to_ignore_at_inference: ClassVar[list[str]] = []
    is_composition: ClassVar[bool] = False
    has_no_defaults_at_init: ClassVar[bool] = False
    sub_configs: ClassVar[dict[str, Any]] = {}
    base_config_key: ClassVar[str] = ""
    base_model_tp_plan: ClassVar[dict[str, Any] | None] = None
    base_model_pp_plan: ClassVar[dict[str, Any] | None] = None
    _auto_class: ClassVar[str | None] = None
    _unsaved: ClassVar[frozenset[str]] = frozenset({"_notes", "attn_implementation", "_commit_hash"})
    """Attributes of an instance that are not written to files under their own name."""

    return_dict: bool
    output_hidden_states: bool
    output_attentions: bool
    torchscript: bool
    tie_word_embeddings: bool
    pruned_heads: dict[int, list[int]]
    architectures: list[str] | None
    problem_type: str | None
    bos_token_id: int | None
    pad_token_id: int | None
    eos_token_id: int | list[int] | None
    tokenizer_class: str | None
    transformers_version: str | None

    def __init__(
        self,
        /,
        *,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | Mapping[str, str] | None = None,
        label2id: Mapping[str, Any] | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        name_or_path: Any = "",
        **kwargs: Any,
    ) -> None:
        self.dtype = dtype if dtype is not None else torch_dtype
        if "auto" in (dtype, torch_dtype):
            self.add_notes(["dtype 'auto': the weights' own type is used"])
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, copy.copy(default)))
        self.id2label, self.label2id = read_labels(num_labels, id2label, label2id)
        self._name_or_path = str(kwargs.pop("_name_or_path", name_or_path))
        self._commit_hash = kwargs.pop("_commit_hash", None)
        self.transformers_version = kwargs.pop("transformers_version", None)
        kwargs.pop("model_type", None)
        if kwargs.pop("xla_device", None) is not None:
            warnings.warn("xla_device has no effect; remove it from the configuration", stacklevel=3)
        if kwargs.get("gradient_checkpointing"):
            warnings.warn(
                "gradient_checkpointing in a configuration is deprecated; call "
                "model.gradient_checkpointing_enable() instead",
                FutureWarning,
                stacklevel=3,
            )
        for name, value in kwargs.items():
            self._set_extra(name, value)

    def _set_extra(self, name: str, value: Any) -> None:
        """Sets an attribute that the class does not name."""
        current = getattr(type(self), name, None)
        if isinstance(current, property) and current.fset is None:
            vars(self)[name] = value  # saved to files, but not readable as an attribute
        elif isinstance(current, property) or current is None or not (callable(current) or name in _RESERVED):
            setattr(self, name, value)
        else:
            raise ConfigError(f"the configuration has the key {show(name)}, the name of a method; rename the key")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(self.attribute_map.get(name, name), value)

    if not TYPE_CHECKING:  # otherwise every name would be an attribute for type checkers

        def __getattr__(self, name: str) -> Any:
            if name in type(self).attribute_map:
                return getattr(self, type(self).attribute_map[name])
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def extra(self) -> Mapping[str, Any]:
        """The attributes that puna's models do not use and that differ from the defaults of every configuration."""
        hidden = self.field_names() | (self._unsaved - {"attn_implementation"}) | {"_name_or_path", "torch_dtype"}
        values = {name: value for name, value in vars(self).items() if name not in hidden}
        initial = {**DEFAULTS, "transformers_version": None}
        defaults = {name for name, value in values.items() if name in initial and value == initial[name]}
        return MappingProxyType({name: value for name, value in values.items() if name not in defaults})

    @classmethod
    def field_names(cls) -> frozenset[str]:
        """Returns the names of the fields that puna's models use: the arguments of the class, labels and token ids."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        named = (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        return _SHARED_FIELDS.union(named)

    @property
    def dtype_name(self) -> str | None:
        """Name of the weights' type, such as "bfloat16"."""
        name: str | None = vars(self)["torch_dtype"]
        return name

    @property
    def dtype(self) -> Any:
        """The weights' type: a `torch.dtype`, or its name if PyTorch is not installed. Either can be assigned."""
        return torch_dtype(self.dtype_name)

    @dtype.setter
    def dtype(self, value: Any) -> None:
        vars(self)["torch_dtype"] = dtype_name(value)

    @property
    def torch_dtype(self) -> Any:
        """The older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = value

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user on arguments that have no effect and were left out."""
        return tuple(vars(self).get("_notes", ()))

    def add_notes(self, notes: Iterable[str]) -> None:
        """Adds sentences to `notes`."""
        if notes := (*self.notes, *notes):
            self._notes = notes

    @property
    def name_or_path(self) -> str:
        """Where the configuration came from: a path, a name of the hub, or an empty string."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: Any) -> None:
        self._name_or_path = str(value)

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head. Assigning another number renames the classes."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if value != len(self.id2label):
            self.id2label, self.label2id = read_labels(value, None, None)

    @property
    def use_return_dict(self) -> bool:
        """Whether forward returns a `ModelOutput` (True) or a tuple."""
        return self.return_dict and not self.torchscript

    @property
    def _attn_implementation(self) -> str | None:
        return vars(self).get("attn_implementation")

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | None) -> None:
        self.attn_implementation = value

    @property
    def per_layer_config(self: Any) -> tuple[Any, ...]:
        """The configuration of each layer: this one. The caches of transformers 5 read it."""
        return (self,) * int(self.num_hidden_layers)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """Returns this configuration; only multimodal models have a separate one for text."""
        return self

    def generation_parameters(self) -> dict[str, Any]:
        """Returns the settings of generation that differ from their defaults."""
        return {name: getattr(self, name) for name, default in GENERATION.items() if getattr(self, name) != default}

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoConfig") -> None:
        """Records that an Auto class should find this class; has no other effect."""
        name = auto_class if isinstance(auto_class, str) else auto_class.__name__
        if not name.startswith("Auto"):
            raise ConfigError(f"auto_class is {show(name)}; it must be the name of an Auto class, such as AutoConfig")
        cls._auto_class = name

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Sets attributes to the values in `config_dict`."""
        if not isinstance(config_dict, Mapping):
            raise ArgumentError(f"config_dict is {show(config_dict)}; it must be a dictionary of fields")
        for name, value in config_dict.items():
            setattr(self, name, value)

    def update_from_string(self, update_str: str) -> None:
        """Sets attributes as in "hidden_size=64,use_cache=false"; each value has the type of the current value.

        Raises:
            ConfigError: an attribute does not exist, or its current value is not a number, a boolean or a string.
        """
        if not isinstance(update_str, str):
            raise ArgumentError(f"update_str is {show(update_str)}; it must be a text such as 'use_cache=false'")
        for item in update_str.split(","):
            name, equals, text = item.partition("=")
            if not equals or not hasattr(self, name):
                raise ConfigError(f"{show(item)} must be NAME=VALUE, where NAME is an attribute of the configuration")
            setattr(self, name, text_value(name, text, getattr(self, name)))
