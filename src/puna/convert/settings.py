"""Settings and metadata of a checkpoint that not every layout can hold, and notes on those that a conversion loses."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from puna.checkpoint import Checkpoint
from puna.checkpoint.gguf_config import SAMPLING_PREFIX, unknown_keys

_HELD_ELSEWHERE = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
"""Fields of a generation configuration that the other layouts hold too, or that no reader needs."""

_BOOKKEEPING = frozenset(
    ("_name_or_path", "transformers_version", "auto_map", "attn_implementation", "_attn_implementation",
     "_attn_implementation_autoset", "gradient_checkpointing", "use_cache", "quantization_config", "pruned_heads")
)  # fmt: skip
"""Keys of config.json about how transformers wrote or runs the model; the other layouts need not hold them."""

_GENERAL = tuple(f"general.{key}" for key in ("architecture", "file_type", "quantization_version", "alignment", "type"))
"""GGUF keys of the group `general` that the converter computes."""

_PREFIXES = ("llama.", "tokenizer.", "split.")
"""Prefixes of the GGUF keys that affect computation; the converter computes them from the model."""


def special_id(checkpoint: Checkpoint, name: Literal["bos_token_id", "pad_token_id"]) -> int | None:
    """Returns the id of a special token in the generation configuration, else the id in the model's configuration."""
    ids: list[int | None] = [getattr(config, name) for config in (checkpoint.generation, checkpoint.config)]
    return ids[1] if ids[0] is None else ids[0]


def config_notes(checkpoint: Checkpoint) -> list[str]:
    """Returns a note on the keys of config.json that puna does not use and only Hugging Face's layout holds, if any."""
    lost = [name for name in checkpoint.config.extra if name not in _BOOKKEEPING]
    return [f"the layout cannot hold config.json's {', '.join(lost)}; these keys are left out"] if lost else []


def generation_notes(checkpoint: Checkpoint, held: Set[str] = frozenset()) -> list[str]:
    """Returns a note on the generation settings that the layout cannot hold, if there are any.

    Args:
        held: settings that the layout holds, in addition to the ids of tokens.
    """
    fields = {} if checkpoint.generation_config is None else checkpoint.generation_config.to_diff_dict()
    lost = [f"{name} {value}" for name, value in fields.items() if name not in _HELD_ELSEWHERE | held]
    return [f"the layout cannot hold generation_config's {', '.join(lost)}; they are left out"] if lost else []


def stored_metadata(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Returns the metadata of a GGUF file; other layouts have none."""
    return {} if checkpoint.gguf is None else checkpoint.gguf.metadata


def descriptions(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the GGUF metadata that puna does not use: author, licence, third-party keys, unknown `llama.` keys."""
    others = [key for key in metadata if not key.startswith(_PREFIXES) and key not in _GENERAL]
    return {key: metadata[key] for key in (*others, *unknown_keys(metadata))}


def description_notes(checkpoint: Checkpoint) -> list[str]:
    """Returns a note on the descriptions that only a GGUF file holds, if there are any.

    The note omits the sampling settings: `generation_notes` covers them.
    """
    stored = [key for key in descriptions(stored_metadata(checkpoint)) if not key.startswith(SAMPLING_PREFIX)]
    keys = [key.removeprefix("general.") for key in stored if key != "general.name"]
    note = f"the layout cannot hold the file's descriptions of the model ({', '.join(keys)}); they are left out"
    return [note] if keys else []
