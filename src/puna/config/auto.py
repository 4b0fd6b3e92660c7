"""`AutoConfig`, for code written against transformers; exists only for compatibility."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puna.config.llama import LlamaConfig
from puna.errors import ConfigError, show


class AutoConfig:
    """Reads the configuration of a model; the only type of model is "llama", unless others are registered."""

    _types: dict[str, type[Any]] = {"llama": LlamaConfig}  # noqa: RUF012  # one registry for the whole process, as in transformers

    def __init__(self) -> None:
        raise ConfigError("AutoConfig has no instances; call AutoConfig.from_pretrained(path)")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> Any:
        """Returns `LlamaConfig.from_pretrained(path, ...)`; `trust_remote_code` and `code_revision` have no effect.

        Raises:
            ModelNotFoundError: if there is no config.json.
            ConfigError: if the model is not a LLaMA.
        """
        used = {key: value for key, value in arguments.items() if key not in ("trust_remote_code", "code_revision")}
        return LlamaConfig.from_pretrained(pretrained_model_name_or_path, **used)

    @classmethod
    def for_model(cls, model_type: str, **fields: Any) -> Any:
        """Returns the configuration of a new model of the type "llama", or of a registered type.

        Raises:
            ConfigError: if the type is unknown, or a field has a value that the model cannot have.
        """
        if model_type not in cls._types:
            raise ConfigError(
                f"model_type is {show(model_type)}; it must be one of {', '.join(map(repr, cls._types))}. Use "
                "transformers for other models"
            )
        return cls._types[model_type](**fields)

    @classmethod
    def register(cls, model_type: str, config: type[Any], exist_ok: bool = False) -> None:
        """Adds a configuration class to those that `for_model` creates; `from_pretrained` reads only "llama" files.

        Raises:
            ConfigError: if the type exists already and `exist_ok` is False, or the class has another `model_type`.
        """
        if getattr(config, "model_type", model_type) != model_type:
            raise ConfigError(
                f"the class has the model_type {show(config.model_type)}, but {show(model_type)} was given; use the "
                "same for both"
            )
        if model_type in cls._types and not exist_ok:
            raise ConfigError(f"model_type {show(model_type)} is registered already; pass exist_ok=True to replace it")
        cls._types[model_type] = config
