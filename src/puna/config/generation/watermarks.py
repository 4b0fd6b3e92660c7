"""Settings of watermarks, with the names of transformers: the value of `watermarking_config` in `generate()`."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.config.checks import check_between, check_whole
from puna.errors import ConfigError, show

_LARGEST_TABLE = 2**24


class BaseWatermarkingConfig(ABC):
    """Base class of the two watermark configurations."""

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from a dictionary; `kwargs` replace its values."""
        config = cls(**config_dict)
        config.update(**kwargs)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings."""
        return copy.deepcopy(self.__dict__)

    def to_json_string(self) -> str:
        """Returns the settings as JSON."""
        return json.dumps(self.__dict__, indent=2) + "\n"

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Writes the settings to a JSON file."""
        Path(json_file_path).write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def update(self, **kwargs: Any) -> None:
        """Sets the settings that exist; ignores other names."""
        for name, value in kwargs.items():
            if hasattr(self, name):
                setattr(self, name, value)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    @abstractmethod
    def validate(self) -> None:
        """Raises ConfigError if a setting is out of range."""


@dataclass
class WatermarkingConfig(BaseWatermarkingConfig):
    """Settings of `WatermarkLogitsProcessor`, which documents them."""

    greenlist_ratio: float = 0.25
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = "lefthash"
    context_width: int = 1

    def validate(self) -> None:
        """Raises ConfigError if a setting is out of range."""
        if self.seeding_scheme not in ("selfhash", "lefthash"):
            raise ConfigError(f"seeding_scheme is {self.seeding_scheme!r}; it must be 'lefthash' or 'selfhash'")
        check_between("greenlist_ratio", self.greenlist_ratio, 0.0, 1.0)
        if isinstance(self.bias, bool) or not isinstance(self.bias, int | float):
            raise ConfigError(f"bias is {show(self.bias)}; it must be a number")
        check_whole("context_width", self.context_width)
        check_whole("hashing_key", self.hashing_key, 0)


@dataclass
class SynthIDTextWatermarkingConfig(BaseWatermarkingConfig):
    """Settings of `SynthIDTextWatermarkLogitsProcessor`, which documents them."""

    ngram_len: int
    keys: list[int]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False

    def validate(self) -> None:
        """Raises ConfigError if a setting is out of range."""
        check_whole("ngram_len", self.ngram_len)
        check_whole("sampling_table_size", self.sampling_table_size)
        check_whole("sampling_table_seed", self.sampling_table_seed, 0)
        check_whole("context_history_size", self.context_history_size)
        if not isinstance(self.keys, list | tuple) or not self.keys:
            raise ConfigError(f"keys is {show(self.keys)}; it must be a list of whole numbers, not empty")
        for key in self.keys:
            check_whole("a key of the watermark", key, 0)
        if self.sampling_table_size > _LARGEST_TABLE:
            raise ConfigError(f"sampling_table_size is {self.sampling_table_size}; it must be at most {_LARGEST_TABLE}")


def read_watermarking_config(value: Any) -> Any:
    """Returns a configuration for a dictionary, and any other value unchanged."""
    if not isinstance(value, dict):
        return value
    kind = SynthIDTextWatermarkingConfig if "ngram_len" in value else WatermarkingConfig
    try:
        return kind.from_dict(value)
    except TypeError as exc:
        raise ConfigError(f"watermarking_config is {value!r}, which {kind.__name__} does not accept: {exc}") from exc
