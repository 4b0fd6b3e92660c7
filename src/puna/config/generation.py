"""`GenerationConfig`: settings of text generation, with the fields, defaults and files of Hugging Face's class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.config.checks import absent_if_minus_one, check_between, check_flag, check_whole, minus_one_notes
from puna.config.llama import LlamaConfig
from puna.errors import ConfigError
from puna.files import make_folder, read_json, reading_errors, write_json
from puna.hub import hub_arguments, local_path, without_hub_arguments

_DEFAULTS: dict[str, Any] = {
    "max_length": 20, "max_new_tokens": None, "min_new_tokens": None, "do_sample": False, "num_beams": 1,
    "num_return_sequences": 1, "use_cache": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None,
    "repetition_penalty": 1.0, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "output_scores": False,
    "return_dict_in_generate": False,
}  # fmt: skip

_LOWEST = {
    "max_length": 1, "num_beams": 1, "num_return_sequences": 1, "top_k": -1, "max_new_tokens": 0, "min_new_tokens": 0,
}  # fmt: skip
"""Minimum of each field that is a whole number."""


class GenerationConfig:
    """Default settings of `generate()`. Only fields that differ from the defaults of transformers are written to files.

    Args:
        max_length: maximum number of tokens in prompt and answer together; `max_new_tokens` takes precedence.
        max_new_tokens: maximum number of tokens in the answer.
        min_new_tokens: minimum number of tokens in the answer; eos tokens are forbidden until then.
        do_sample: sample instead of choosing the most likely token.
        num_beams: number of beams of a beam search; 1 means no beam search.
        num_return_sequences: answers per prompt.
        use_cache: keep keys and values between steps.
        temperature: divides the logits; 0 chooses the most likely token.
        top_k: sample from the k most likely tokens; 0, or -1 as in vLLM, means from all.
        top_p: sample from the smallest set of most likely tokens with at least this total probability.
        min_p: drop tokens whose probability is below this fraction of the highest one.
        repetition_penalty: divides the positive logits of tokens already in the text, multiplies the negative ones.
        pad_token_id, bos_token_id: token ids.
        eos_token_id: the id or ids that end a text.
        output_scores, return_dict_in_generate: control what `generate()` returns.
        extra: all other fields, which are kept as attributes and written back.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        /,
        max_length: int = 20,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        do_sample: bool = False,
        num_beams: int = 1,
        num_return_sequences: int = 1,
        use_cache: bool = True,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        output_scores: bool = False,
        return_dict_in_generate: bool = False,
        **extra: Any,
    ) -> None:
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self.min_new_tokens = min_new_tokens
        self.do_sample = do_sample
        self.num_beams = num_beams
        self.num_return_sequences = num_return_sequences
        self.use_cache = use_cache
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self.pad_token_id = absent_if_minus_one(pad_token_id)
        self.bos_token_id = absent_if_minus_one(bos_token_id)
        self.eos_token_id = absent_if_minus_one(eos_token_id)
        self.output_scores = output_scores
        self.return_dict_in_generate = return_dict_in_generate
        self.extra = extra
        self._notes: list[str] = []
        self._unusable: list[str] = []
        self.validate()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in ("extra", "_notes", "_unusable") and name in self.extra:
                return self.extra[name]
            raise AttributeError(f"GenerationConfig has no field {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on values of a file that were read in another form, which changes nothing."""
        return tuple(self._notes)

    @property
    def unusable(self) -> tuple[str, ...]:
        """Notes on settings of a file that have no valid value, so that their defaults are used."""
        return tuple(self._unusable)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text; empty if there are none."""
        if self.eos_token_id is None:
            return ()
        return tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else (self.eos_token_id,)

    def validate(self) -> None:
        """Checks every field; raises a ConfigError that names the field, its value and the limit."""
        for name in _DEFAULTS:
            _check_field(name, getattr(self, name))

    @classmethod
    def from_model_config(cls, config: LlamaConfig) -> GenerationConfig:
        """Returns the settings of a model without `generation_config.json`: its token ids, otherwise defaults."""
        return cls(pad_token_id=config.pad_token_id, bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], **overrides: Any) -> GenerationConfig:
        """Builds a configuration from the content of a `generation_config.json`; a null means the default."""
        return cls(**{**{key: value for key, value in fields.items() if value is not None}, **overrides})

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any], **overrides: Any) -> GenerationConfig:
        """Builds a configuration from the content of a model's file.

        Settings without a valid value are ignored and named in `unusable`, so that they do not prevent loading. Wrong
        token ids, and wrong `overrides`, are errors.
        """
        usable: dict[str, Any] = {}
        notes, unusable = minus_one_notes(fields), []
        for name, value in fields.items():
            if value is None:
                continue
            usable[name] = _convert_value(name, value)
            if type(usable[name]) is not type(value):
                notes.append(f"{name} {value!r} is read as {usable[name]!r}")
            if name in _DEFAULTS and not name.endswith("_token_id"):
                try:
                    _check_field(name, usable[name])
                except ConfigError as exc:
                    del usable[name]
                    unusable.append(f"{exc}; the default, {_DEFAULTS[name]!r}, is used")
        config = cls(**{**usable, **overrides})
        config._notes, config._unusable = notes, unusable
        return config

    @classmethod
    @reading_errors(ConfigError)
    def from_pretrained(cls, path: str | Path, **overrides: Any) -> GenerationConfig:
        """Reads `generation_config.json`; `path` may be a folder, the file or a model of the hub."""
        file = local_path(path, "config", **hub_arguments(overrides))
        overrides = without_hub_arguments(overrides)
        file = file / "generation_config.json" if file.is_dir() else file
        fields = read_json(file, ConfigError)
        try:
            return cls.from_stored(fields, **overrides)
        except ConfigError as exc:
            raise ConfigError(f"{file}: {exc}") from exc

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields that differ from the defaults; transformers writes the same fields to files."""
        fields = {name: getattr(self, name) for name, default in _DEFAULTS.items() if getattr(self, name) != default}
        return {**self.extra, **fields}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `generation_config.json` into `folder`, which is created if needed."""
        self.validate()
        write_json(make_folder(folder) / "generation_config.json", self.to_dict())


def _check_field(name: str, value: Any) -> None:
    """Raises ConfigError unless the field can have this value."""
    if name in _LOWEST:
        if value is not None or _DEFAULTS[name] is not None:
            check_whole(name, value, _LOWEST[name])
    elif isinstance(_DEFAULTS[name], bool):
        check_flag(name, value)
    elif name in ("top_p", "min_p"):
        check_between(name, 0.0 if value is None and name == "min_p" else value, 0.0, 1.0)
    elif name in ("temperature", "repetition_penalty"):
        check_between(name, value, 0.0, math.inf)
        if name == "repetition_penalty" and value == 0:
            raise ConfigError("repetition_penalty is 0; it must be greater than 0 (1 means no penalty)")
    else:
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                check_whole(name, item, 0)


def _convert_value(name: str, value: Any) -> Any:
    """Returns an integer for a float such as 50.0, and a bool for 0 or 1, where the field has that type."""
    if name in _LOWEST and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(_DEFAULTS.get(name), bool) and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    return value
