"""`LlamaConfig`: the configuration of a LLaMA model, with the fields, defaults and files of Hugging Face's class."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.config.architecture import check_architecture
from puna.config.checks import absent_if_minus_one, check_between, check_flag, check_whole, dtype_name, minus_one_notes
from puna.config.labels import read_labels
from puna.config.rope import ROPE_FIELDS, RopeContext, check_consistent, override_rope, read_rope, write_rope
from puna.errors import ConfigError, ModelNotFoundError, show
from puna.files import has_file, make_folder, read_json, reading_errors, write_json
from puna.hub import hub_arguments, local_path, without_hub_arguments

_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


class LlamaConfig:
    """Configuration of a LLaMA model.

    Arguments and defaults are those of Hugging Face's `LlamaConfig` (4.34, with the later `attention_dropout`,
    `mlp_bias` and `head_dim`). Other arguments are kept as attributes and written back.

    Args:
        vocab_size: rows of the embedding matrix.
        hidden_size: width D of the hidden states.
        intermediate_size: width of the feed-forward layer.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: number of query heads H.
        num_key_value_heads: number of key and value heads K, a divisor of H. None means H (no grouping).
        hidden_act: activation of the feed-forward layer, a name or a callable.
        max_position_embeddings: the context length that the model was trained for, in tokens.
        initializer_range: standard deviation of the normal distribution that new weights are drawn from.
        rms_norm_eps: added to the mean square in RMSNorm.
        use_cache: whether the model returns its keys and values.
        pad_token_id: id of the padding token, whose embedding is initialised to zero. None or -1: no padding token.
        bos_token_id: id that starts a text.
        eos_token_id: the id or ids that end a text.
        pretraining_tp: number of tensor-parallel slices in the original training; their partial results were summed.
        tie_word_embeddings: whether the output head shares the embedding matrix.
        rope_theta: base of the rotary embeddings.
        rope_scaling: None, or settings whose `rope_type` (or `type`) is linear, dynamic, yarn, llama3 or longrope.
        attention_bias: whether q, k, v and o have biases.
        attention_dropout: probability of dropping an attention weight in training.
        mlp_bias: whether the feed-forward layers have biases.
        head_dim: width E of a head; None means hidden_size / num_attention_heads.
        rope_parameters: `rope_scaling` and `rope_theta` in one mapping, the form of transformers 5.x.
        num_labels: number of classes of a classification head; by default the size of `id2label`, or 2 without it.
        id2label, label2id: names of the classes.
        problem_type: "regression", "single_label_classification" or "multi_label_classification".
        dtype: name of the weights' type, such as "bfloat16"; `torch_dtype` is the older name of this argument.
        architectures: names of the classes the weights were saved from.
        output_attentions, output_hidden_states, return_dict: defaults of the model's forward arguments.

    Attributes:
        notes: sentences for the user on arguments that have no effect and were left out.

    Raises:
        ConfigError: if a field has a value that no LLaMA model can have; the message names field, value and limit.
    """

    model_type = "llama"
    keys_to_ignore_at_inference = ("past_key_values",)
    is_encoder_decoder = False

    def __init__(
        self,
        /,  # so that a file may have a key named "self"
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        hidden_act: str | Callable[..., Any] = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        pretraining_tp: int = 1,
        tie_word_embeddings: bool = False,
        rope_theta: float = 10000.0,
        rope_scaling: Mapping[str, Any] | None = None,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        mlp_bias: bool = False,
        head_dim: int | None = None,
        *,
        rope_parameters: Mapping[str, Any] | None = None,
        original_max_position_embeddings: int | None = None,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | Mapping[str, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        problem_type: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        architectures: list[str] | None = None,
        **extra: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.pad_token_id = absent_if_minus_one(pad_token_id)
        self.bos_token_id = absent_if_minus_one(bos_token_id)
        self.eos_token_id = absent_if_minus_one(eos_token_id)
        self.pretraining_tp = 1 if pretraining_tp is None else pretraining_tp
        self.tie_word_embeddings = tie_word_embeddings
        self.attention_bias = attention_bias
        self.attention_dropout = 0.0 if attention_dropout is None else attention_dropout
        self.mlp_bias = mlp_bias
        self.head_dim = _default_head_dim(hidden_size, num_attention_heads) if head_dim is None else head_dim
        self.problem_type = problem_type
        self.dtype = dtype if dtype is not None else torch_dtype
        self.output_attentions = output_attentions
        self.output_hidden_states = output_hidden_states
        self.return_dict = return_dict
        self.id2label, self.label2id = read_labels(num_labels, id2label, label2id)
        self.architectures = architectures
        extra.pop("model_type", None)
        self.extra = extra
        self.validate()
        self.rope_theta, self._rope_scaling, rope_notes = read_rope(
            {"rope_theta": rope_theta, "rope_scaling": rope_scaling, "rope_parameters": rope_parameters},
            RopeContext(max_position_embeddings, self.head_dim, original_max_position_embeddings),
        )
        ids = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        self.notes = minus_one_notes(ids)
        self.notes += rope_notes
        if "auto" in (dtype, torch_dtype):
            self.notes.append("dtype 'auto': the weights' own type is used")
        original = "original_max_position_embeddings"
        if original_max_position_embeddings is not None and original not in (self._rope_scaling or ()):
            extra[original] = original_max_position_embeddings  # unused by this rope type, but written back

    # Keys in `extra` can be read as attributes, as in transformers.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name != "extra" and name in self.extra:
                return self.extra[name]
            raise AttributeError(f"LlamaConfig has no field {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LlamaConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{key}={value!r}" for key, value in self.to_dict().items() if value is not None)
        return f"LlamaConfig({fields})"

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """Settings with the key `rope_type`; None for plain rotary embeddings. Every supported form can be assigned."""
        return self._rope_scaling

    @rope_scaling.setter
    def rope_scaling(self, value: Mapping[str, Any] | None) -> None:
        self._set_rope({"rope_scaling": value, "rope_theta": self.rope_theta})

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """`rope_scaling` and `rope_theta` in one mapping; `rope_type` is "default" for plain rotary embeddings."""
        parameters: dict[str, Any] = write_rope(self.rope_theta, self._rope_scaling)["rope_parameters"]
        return parameters

    @rope_parameters.setter
    def rope_parameters(self, value: Mapping[str, Any]) -> None:
        self._set_rope({"rope_parameters": value, "rope_theta": self.rope_theta})

    def _set_rope(self, fields: Mapping[str, Any]) -> None:
        context = RopeContext(self.max_position_embeddings, self.head_dim)
        self.rope_theta, self._rope_scaling, _ = read_rope(fields, context)

    @property
    def context_length(self) -> int:
        """Number of tokens that the model can attend to.

        linear and dynamic scaling multiply `max_position_embeddings` by their factor; yarn multiplies its original
        context; for the other types, `max_position_embeddings` is already the extended context.
        """
        settings = self._rope_scaling or {"rope_type": "default"}
        if settings["rope_type"] in ("linear", "dynamic"):
            return int(self.max_position_embeddings * settings["factor"])
        if settings["rope_type"] == "yarn":
            stretched = int(settings["original_max_position_embeddings"] * settings["factor"])
            return max(self.max_position_embeddings, stretched)
        return self.max_position_embeddings

    @property
    def dtype(self) -> str | None:
        """Name of the weights' type. A name or a `torch.dtype` can be assigned."""
        return self._dtype

    @dtype.setter
    def dtype(self, value: Any) -> None:
        self._dtype = dtype_name(value)

    @property
    def torch_dtype(self) -> str | None:
        """The older name of `dtype`."""
        return self._dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self._dtype = dtype_name(value)

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        self.id2label, self.label2id = read_labels(value, None, None)

    @property
    def use_return_dict(self) -> bool:
        """Whether forward returns a dataclass (True) or a tuple."""
        return self.return_dict

    def validate(self) -> None:
        """Checks every field.

        Raises:
            ConfigError: if a field is out of range; the message names the first one.
        """
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            check_whole(name, getattr(self, name))
        for name in ("num_key_value_heads", "max_position_embeddings", "pretraining_tp", "head_dim"):
            check_whole(name, getattr(self, name))
        for name in ("use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias"):
            check_flag(name, getattr(self, name))
        for name, low, high in (
            ("initializer_range", 0.0, math.inf),
            ("rms_norm_eps", 0.0, 1.0),
            ("attention_dropout", 0.0, 1.0),
        ):
            check_between(name, getattr(self, name), low, high)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads is {self.num_key_value_heads}; it must divide num_attention_heads, "
                f"{self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; it must be even, since rotary embeddings rotate pairs")
        for name in ("intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads"):
            if getattr(self, name) % self.pretraining_tp:
                raise ConfigError(
                    f"pretraining_tp is {self.pretraining_tp}; it must divide {name}, {getattr(self, name)}"
                )
        self._validate_names()
        self._validate_ids()

    def _validate_names(self) -> None:
        if not callable(self.hidden_act) and not isinstance(self.hidden_act, str):
            raise ConfigError(
                f"hidden_act is {show(self.hidden_act)}; it must be the name of an activation or a callable"
            )
        if self.problem_type is not None and self.problem_type not in _PROBLEM_TYPES:
            raise ConfigError(
                f"problem_type is {show(self.problem_type)}; it must be one of {', '.join(_PROBLEM_TYPES)}"
            )

    def _validate_ids(self) -> None:
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        for name, value in [("pad_token_id", self.pad_token_id), ("bos_token_id", self.bos_token_id)] + [
            ("eos_token_id", item) for item in eos
        ]:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ConfigError(f"{name} is {value!r}; it must be a token id, 0 or more, or absent")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"pad_token_id is {self.pad_token_id}; the embedding has rows 0 to {self.vocab_size - 1} (vocab_size)"
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], **overrides: Any) -> LlamaConfig:
        """Builds a configuration from the content of a `config.json`; `overrides` take precedence.

        Raises:
            ConfigError: if the architecture is not llama, or a field is out of range.
        """
        notes = check_architecture(fields)
        check_consistent(fields)
        arguments = inspect.signature(cls.__init__).parameters
        merged = {
            key: value
            for key, value in fields.items()
            if value is not None or key not in arguments or key.endswith("_token_id")  # a null id means no token
        }
        if any(key in overrides for key in ROPE_FIELDS):
            merged = override_rope(merged, overrides)
        if "num_labels" in overrides:
            merged = {key: value for key, value in merged.items() if key not in ("id2label", "label2id")}
        for name, synonym in (("dtype", "torch_dtype"), ("torch_dtype", "dtype")):
            if name in overrides:
                merged.pop(synonym, None)
        config = cls(**{**merged, **overrides})
        config.notes[:0] = notes
        return config

    @classmethod
    def from_json_file(cls, path: str | Path) -> LlamaConfig:
        """Reads a configuration file."""
        fields = read_json(Path(path), ConfigError)
        try:
            return cls.from_dict(fields)
        except ConfigError as exc:
            raise ConfigError(f"{path}: {exc}") from exc

    @classmethod
    @reading_errors(ConfigError)
    def from_pretrained(cls, path: str | Path, **overrides: Any) -> LlamaConfig:
        """Reads `config.json`; `path` may be a folder, the file or a model of the hub.

        `overrides` are fields that take precedence over the file's, or arguments for the hub: `revision`, `token`,
        `cache_dir`, `force_download` and `local_files_only`.

        Raises:
            ModelNotFoundError: if there is no such file.
            ConfigError: if the file is not a LLaMA configuration.
        """
        file = local_path(path, "config", **hub_arguments(overrides))
        overrides = without_hub_arguments(overrides)
        file = file / "config.json" if file.is_dir() else file
        if not has_file(file, ConfigError):
            raise ModelNotFoundError(f"{path} has no config.json; give the folder of a model")
        fields = read_json(file, ConfigError)
        try:
            return cls.from_dict(fields, **overrides)
        except ConfigError as exc:
            raise ConfigError(f"{file}: {exc}") from exc

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of a `config.json` that transformers 4.34 to 5.x and puna read in the same way."""
        special = ("extra", "id2label", "label2id", "rope_theta", "architectures", "notes")
        fields = {key: value for key, value in vars(self).items() if key not in special and not key.startswith("_")}
        fields |= write_rope(self.rope_theta, self._rope_scaling)
        fields |= {"dtype": self.dtype, "torch_dtype": self.dtype}  # the names in transformers 5.x and 4.x
        if self.architectures is not None:
            fields["architectures"] = list(self.architectures)
        if self.id2label != read_labels(None, None, None)[0]:
            fields["id2label"] = {str(key): value for key, value in self.id2label.items()}
            fields["label2id"] = dict(self.label2id)
        return {"model_type": self.model_type, **self.extra, **fields}

    def to_json_string(self) -> str:
        """Returns `to_dict()` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` into `folder`, which is created if needed.

        Raises:
            ConfigError: if a field cannot be written, such as a callable `hidden_act`.
        """
        self.validate()
        if not isinstance(self.hidden_act, str):
            raise ConfigError(
                f"hidden_act is {show(self.hidden_act)}; to be saved, it must be the name of an activation"
            )
        write_json(make_folder(folder) / "config.json", self.to_dict())


def _default_head_dim(hidden_size: int, heads: int) -> int:
    check_whole("hidden_size", hidden_size)
    check_whole("num_attention_heads", heads)
    if hidden_size % heads:
        raise ConfigError(
            f"hidden_size is {hidden_size}; without head_dim it must be a multiple of num_attention_heads, {heads}"
        )
    return hidden_size // heads
