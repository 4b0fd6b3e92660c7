"""A LLaMA model with random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from puna.config import LlamaConfig
from puna.errors import ConfigError
from puna.files import read_file, read_json
from puna.model import LlamaForCausalLM
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.settings import TrainingSettings, parse_toml

_KEYS = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
}
"""Settings of a new model, and the fields of its configuration."""

_DEFAULTS = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "tie_word_embeddings": True}

_RESIDUAL = ("o_proj.weight", "down_proj.weight")
"""Matrices whose results are added to the hidden states."""

_LIMIT = 2**20
"""Maximum size of a TOML file with a configuration, in bytes."""


def new_config(settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Returns the configuration of a new model: that of the file, changed by the other settings.

    The tokenizer determines special tokens, and the size of the vocabulary unless the file has a larger one.

    Raises:
        ConfigError: the file cannot be read, a value is invalid, or the vocabulary or context is too small.
    """
    values = {} if settings.from_config is None else _read(Path(settings.from_config))
    values |= {key: getattr(settings, name) for name, key in _KEYS.items() if getattr(settings, name) is not None}
    if settings.from_config is None:
        values = _DEFAULTS | values
        width = values["hidden_size"]
        step = 64 if width >= 48 else 8  # matrix products are slower for sizes that vectors do not divide
        values.setdefault("intermediate_size", max(step, 8 * width // 3 // step * step))
    elif settings.heads is not None and settings.kv_heads is None:
        values["num_key_value_heads"] = settings.heads
    for name, need in (("vocab_size", len(tokenizer)), ("max_position_embeddings", settings.max_length)):
        value = values.setdefault(name, need)
        if isinstance(value, int) and value < need:
            raise ConfigError(
                f"{settings.from_config}: {name} is {value}, but {need} are needed for "
                f"{'the tokenizer' if name == 'vocab_size' else 'max_length'}; use a larger value, or leave it out"
            )
    for name in ("bos", "eos", "pad"):
        values[f"{name}_token_id"] = getattr(tokenizer, f"{name}_token_id")
    values |= {"initializer_range": settings.initial_std, "architectures": ["LlamaForCausalLM"]}
    values.pop("torch_dtype", None)
    return LlamaConfig(**{name: value for name, value in values.items() if name != "transformers_version"})


def _read(path: Path) -> dict[str, Any]:
    """Returns the values of a TOML or JSON file; of a folder, those of its config.json."""
    if path.is_dir():
        path = path / "config.json"
    if path.suffix != ".toml":
        return read_json(path, ConfigError)
    return parse_toml(path, read_file(path, ConfigError, _LIMIT))


def new_model(config: LlamaConfig, std: float, seed: int) -> LlamaForCausalLM:
    """Returns a float32 model whose weights are a function of the configuration, `std` and `seed`.

    Matrices are normal with the standard deviation `std`, that of projections into the residual stream divided by
    sqrt(2 * layers) (GPT-2), and weights of norms are 1.
    """
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    scale = 1 / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(0.0, std * (scale if name.endswith(_RESIDUAL) else 1.0), generator=generator)
    return model
