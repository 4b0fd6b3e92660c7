"""`LlamaConfig`: the configuration of a LLaMA model, with the fields, defaults and files of Hugging Face's class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from puna.config.architecture import check_architecture
from puna.config.base_defaults import LLAMA_PIPELINE_PLAN, LLAMA_TENSOR_PLAN
from puna.config.checks import absent_if_minus_one, check_between, check_flag, check_whole, minus_one_notes
from puna.config.pretrained import PretrainedConfig
from puna.config.rope import (
    ROPE_FIELDS,
    RopeContext,
    RopeParameters,
    check_consistent,
    override_rope,
    read_rope,
    write_rope,
)
from puna.errors import ConfigError, show

if TYPE_CHECKING:
    from typing_extensions import Self

_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

_HIGHEST = {
    "vocab_size": 2**31 - 1, "hidden_size": 2**20, "intermediate_size": 2**31 - 1, "num_hidden_layers": 2**16,
    "num_attention_heads": 2**16, "num_key_value_heads": 2**16, "head_dim": 2**20,
}  # fmt: skip
"""Limits of sizes, far above those of real models: with a wrong size, code could need hours or all memory."""


class LlamaConfig(PretrainedConfig):
    """Configuration of a LLaMA model.

    Arguments and defaults are those of Hugging Face's `LlamaConfig` (4.34, with the later `attention_dropout`,
    `mlp_bias` and `head_dim`). Other arguments become attributes and are saved, too. `validate` checks that the
    fields fit together; models and checkpoints call it.

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
        kwargs: attributes of every configuration. Those with an effect are `num_labels`, `id2label` and `label2id`
            (the classes of a classification head), `problem_type` ("regression", "single_label_classification" or
            "multi_label_classification"), `dtype` (the weights' type; `torch_dtype` is its older name),
            `architectures` (the classes that the weights were saved from), `output_attentions`,
            `output_hidden_states` and `return_dict` (defaults of the model's forward arguments), and the settings of
            `GenerationConfig`.

    Raises:
        ConfigError: if a field has a value that no LLaMA model can have; the message names field, value and limit.
    """

    model_type = "llama"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_tp_plan = LLAMA_TENSOR_PLAN
    base_model_pp_plan = LLAMA_PIPELINE_PLAN
    _unsaved = PretrainedConfig._unsaved | {"_head_dim", "_rope_scaling"}

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
        **kwargs: Any,
    ) -> None:
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
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
        self.pretraining_tp = 1 if pretraining_tp is None else pretraining_tp
        self.attention_bias = attention_bias
        self.attention_dropout = 0.0 if attention_dropout is None else attention_dropout
        self.mlp_bias = mlp_bias
        self.head_dim = head_dim
        self.check_fields()
        self.rope_theta, self._rope_scaling, rope_notes = read_rope(
            {"rope_theta": rope_theta, "rope_scaling": rope_scaling, "rope_parameters": rope_parameters},
            RopeContext(max_position_embeddings, self.head_dim, original_max_position_embeddings),
        )
        ids = {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        self.add_notes(minus_one_notes(ids) + rope_notes)
        original = "original_max_position_embeddings"
        if original_max_position_embeddings is not None and original not in (self._rope_scaling or ()):
            setattr(self, original, original_max_position_embeddings)  # unused by this rope type, but saved

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, absent_if_minus_one(value) if name in _TOKEN_IDS else value)

    @property
    def head_dim(self) -> int:
        """Width E of a head: the assigned width, or hidden_size / num_attention_heads, rounded down."""
        if self._head_dim is not None:
            return self._head_dim
        return self.hidden_size // self.num_attention_heads if self.num_attention_heads else 0

    @head_dim.setter
    def head_dim(self, value: int | None) -> None:
        # A width that follows from the other fields continues to do so when they change.
        self._head_dim: int | None = None
        if value is not None and (isinstance(value, bool) or value != _quotient(self)):
            self._head_dim = value

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """Settings with the key `rope_type` or `type`; None for plain rotary embeddings.

        Every supported form can be assigned.
        """
        return self._rope_scaling

    @rope_scaling.setter
    def rope_scaling(self, value: Mapping[str, Any] | None) -> None:
        self._set_rope({"rope_scaling": value, "rope_theta": self.rope_theta})

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """`rope_scaling` and `rope_theta` in one mapping; `rope_type` is "default" for plain rotary embeddings.

        Keys and the mapping can be assigned.
        """
        parameters: dict[str, Any] = write_rope(self.rope_theta, self._rope_scaling)["rope_parameters"]
        return RopeParameters(parameters, self._set_rope)

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

    def validate(self) -> None:
        """Checks every field, and that the fields fit together.

        Raises:
            ConfigError: if no model can have these fields; the message names the first one.
        """
        self.check_fields(lowest=1)
        self._set_rope({"rope_theta": self.rope_theta, "rope_scaling": self._rope_scaling})
        if self._head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size is {self.hidden_size}; without head_dim it must be a multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )
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
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"pad_token_id is {self.pad_token_id}; the embedding has rows 0 to {self.vocab_size - 1} (vocab_size)"
            )

    def check_fields(self, lowest: int = 0) -> None:
        """Checks every field by itself.

        Args:
            lowest: the minimum of sizes. Code may assign 0 before it assigns the size of a model.

        Raises:
            ConfigError: if a field is out of range; the message names the first one.
        """
        for name, highest in _HIGHEST.items():
            check_whole(name, getattr(self, name), lowest, highest)
        for name in ("max_position_embeddings", "pretraining_tp"):
            check_whole(name, getattr(self, name))
        for name in ("use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias"):
            check_flag(name, getattr(self, name))
        for name, low, high in (
            ("initializer_range", 0.0, math.inf),
            ("rms_norm_eps", 0.0, 1.0),
            ("attention_dropout", 0.0, 1.0),
        ):
            check_between(name, getattr(self, name), low, high)
        self._check_names()
        self._check_ids()

    def _check_names(self) -> None:
        if not callable(self.hidden_act) and not isinstance(self.hidden_act, str):
            raise ConfigError(
                f"hidden_act is {show(self.hidden_act)}; it must be the name of an activation or a callable"
            )
        if self.problem_type is not None and self.problem_type not in _PROBLEM_TYPES:
            raise ConfigError(
                f"problem_type is {show(self.problem_type)}; it must be one of {', '.join(_PROBLEM_TYPES)}"
            )

    def _check_ids(self) -> None:
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        for name, value in [("pad_token_id", self.pad_token_id), ("bos_token_id", self.bos_token_id)] + [
            ("eos_token_id", item) for item in eos
        ]:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ConfigError(f"{name} is {value!r}; it must be a token id, 0 or more, or absent")

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> Self:
        """Reads the `config.json` of a checkpoint, and checks that its fields fit together.

        Raises:
            ConfigError: if no model can have these fields; the message names the file.
        """
        config = cls.from_pretrained(folder)
        try:
            config.validate()
        except ConfigError as exc:
            raise ConfigError(f"{Path(folder) / 'config.json'}: {exc}") from exc
        return config

    @classmethod
    def _build(cls, fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        notes = check_architecture(fields, cls.model_type)
        check_consistent(fields)
        if any(key in overrides for key in ROPE_FIELDS):
            fields = override_rope(dict(fields), overrides)
        config = super()._build(fields, overrides)
        config.add_notes(notes)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns all attributes in the form in which a `config.json` holds them.

        The rope settings have the forms of transformers 4.34 and 5.x, so that each release reads the same values.
        """
        width = _quotient(self) if self._head_dim is None else self._head_dim
        return super().to_dict() | {"head_dim": width} | write_rope(self.rope_theta, self._rope_scaling)


_TOKEN_IDS = frozenset({"pad_token_id", "bos_token_id", "eos_token_id"})


def _quotient(config: LlamaConfig) -> int | None:
    """Returns the width of a head that follows from the other fields, if it is a whole number."""
    sizes = (config.hidden_size, config.num_attention_heads)
    if not all(isinstance(size, int) and size > 0 for size in sizes) or sizes[0] % sizes[1]:
        return None
    return sizes[0] // sizes[1]
