"""`AutoModel` and the other Auto classes of models, for code written for transformers; only for compatibility.

Each loads the LLaMA class of its task. The architecture that config.json names does not matter, as in transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NoReturn

from puna.config import LlamaConfig
from puna.errors import ConfigError, show
from puna.model.causal_lm import LlamaForCausalLM
from puna.model.classification import LlamaForSequenceClassification
from puna.model.llama import LlamaModel
from puna.model.token_heads import LlamaForQuestionAnswering, LlamaForTokenClassification


class _AutoModel:
    """The methods of all these classes; a subclass names the class of its task."""

    _classes: ClassVar[dict[type[Any], type[Any]]]
    """The class of models for each class of configurations."""

    def __init__(self, *arguments: Any, **keywords: Any) -> NoReturn:
        name = type(self).__name__
        raise ConfigError(f"{name} has no instances; call {name}.from_pretrained(path) or {name}.from_config(config)")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *arguments: Any, **keywords: Any) -> Any:
        """Loads the model; the arguments are those of `LlamaForCausalLM.from_pretrained`.

        Raises:
            ConfigError: if the model is not a LLaMA.
            ModelNotFoundError, CheckpointError: as for the LLaMA classes.
        """
        for name in ("trust_remote_code", "code_revision"):  # no code of a model is executed
            keywords.pop(name, None)
        config = keywords.get("config")
        model_class = cls._model_class(
            LlamaConfig if config is None or isinstance(config, str | Path) else type(config)
        )
        return model_class.from_pretrained(pretrained_model_name_or_path, *arguments, **keywords)

    @classmethod
    def from_config(cls, config: Any, **keywords: Any) -> Any:
        """Returns a new model with random weights.

        Args:
            config: the configuration; it is not changed.
            keywords: `dtype` or `torch_dtype`, the type of the weights (float32 by default, "auto" for that of the
                configuration), and `attn_implementation`. Others are passed to the class.

        Raises:
            ConfigError: if the class of the configuration is neither LLaMA's nor registered.
        """
        for name in ("trust_remote_code", "code_revision"):
            keywords.pop(name, None)
        return cls._model_class(type(config))._from_config(config, **keywords)

    @classmethod
    def _model_class(cls, config_class: type[Any]) -> type[Any]:
        for each in config_class.__mro__:
            if each in cls._classes:
                return cls._classes[each]
        model_type = getattr(config_class, "model_type", None)
        raise ConfigError(
            f"the configuration is a {config_class.__name__} (model_type {show(model_type)}); {cls.__name__} has "
            f"models for {', '.join(each.__name__ for each in cls._classes)}. Use transformers for other models"
        )

    @classmethod
    def has_class(cls, model: object) -> bool:
        """Returns whether `model` is of a class that this class loads."""
        return isinstance(model, tuple(cls._classes.values()))

    @classmethod
    def register(cls, config_class: type[Any], model_class: type[Any], exist_ok: bool = False) -> None:
        """Makes `from_config`, and `from_pretrained` with `config`, use `model_class` for a class of configurations.

        Raises:
            ConfigError: if there is a model for this class already and `exist_ok` is False.
        """
        if config_class in cls._classes and not exist_ok:
            raise ConfigError(
                f"{cls.__name__} has the model {cls._classes[config_class].__name__} for {config_class.__name__} "
                "already; pass exist_ok=True to replace it"
            )
        cls._classes[config_class] = model_class


class AutoModel(_AutoModel):
    """Loads a `LlamaModel`."""

    _classes: ClassVar[dict[type[Any], type[Any]]] = {LlamaConfig: LlamaModel}


class AutoModelForCausalLM(_AutoModel):
    """Loads a `LlamaForCausalLM`."""

    _classes: ClassVar[dict[type[Any], type[Any]]] = {LlamaConfig: LlamaForCausalLM}


class AutoModelForSequenceClassification(_AutoModel):
    """Loads a `LlamaForSequenceClassification`."""

    _classes: ClassVar[dict[type[Any], type[Any]]] = {LlamaConfig: LlamaForSequenceClassification}


class AutoModelForTokenClassification(_AutoModel):
    """Loads a `LlamaForTokenClassification`."""

    _classes: ClassVar[dict[type[Any], type[Any]]] = {LlamaConfig: LlamaForTokenClassification}


class AutoModelForQuestionAnswering(_AutoModel):
    """Loads a `LlamaForQuestionAnswering`."""

    _classes: ClassVar[dict[type[Any], type[Any]]] = {LlamaConfig: LlamaForQuestionAnswering}
