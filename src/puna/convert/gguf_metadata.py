"""The metadata of a GGUF file: the inverse of `checkpoint.gguf_config` and `checkpoint.gguf_rope`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint import Checkpoint
from puna.checkpoint.gguf_config import END_IDS, sampling_fields, write_sampling
from puna.config import LlamaConfig
from puna.convert.settings import config_notes, descriptions, generation_notes, special_id
from puna.convert.tokenizer_files import gguf_tokenizer
from puna.errors import CheckpointError, show
from puna.files import name_from_path
from puna.formats.gguf_writer import Value

_EOS_KEYS = (END_IDS[0], *reversed(END_IDS[1:]))
"""The end tokens for which GGUF has keys, in the order in which `_eos_ids` returns their ids."""

_ORIGINAL_CONTEXT = 8192
"""The original context of Llama 3.1's rope scaling, which readers assume if no key contains it."""


def gguf_metadata(
    checkpoint: Checkpoint, stored: Mapping[str, Any], file_type: int, quantised: bool, instruct: bool = False
) -> tuple[dict[str, Value], list[str]]:
    """Returns all keys and values of the file, and notes on the properties that it cannot hold.

    Args:
        stored: the metadata of a GGUF source, whose descriptions of the model are copied.
        file_type: the value of general.file_type.
        quantised: whether any tensor is quantised.
        instruct: add Llama 3's chat template to the tokenizer.

    Raises:
        CheckpointError: GGUF has no key for a property of the model.
        TokenizerError: GGUF cannot hold the tokenizer.
    """
    config = checkpoint.config
    if config.hidden_act != "silu":
        raise CheckpointError(f"hidden_act is {show(config.hidden_act)}; llama.cpp runs LLaMAs only with silu")
    name = name_from_path(checkpoint.path).encode("utf-8", "replace").decode()
    keys: dict[str, Value] = {"general.architecture": "llama", "general.type": "model", "general.name": name}
    keys |= {key: _stored_value(value) for key, value in descriptions(stored).items()}
    keys["general.file_type"] = file_type
    if quantised:
        keys["general.quantization_version"] = 2
    keys |= {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.vocab_size": config.vocab_size,
    }
    tokenizer, notes = gguf_tokenizer(checkpoint.tokenizer, config.vocab_size, instruct)
    keys |= _rope_keys(config) | tokenizer
    notes = [*_setting_notes(checkpoint), *notes]
    if checkpoint.kind != "gguf":
        keys |= write_sampling(checkpoint.generation)
    # The ids of a GGUF source come with its tokenizer; they are complete unless an end-of-turn token was added.
    return (keys if checkpoint.kind == "gguf" and not instruct else keys | _special_ids(checkpoint)), notes


def _stored_value(value: Any) -> Value:
    """Returns a value of the source's metadata; a float that float32 cannot hold as numpy.float64, the stored type."""
    result: Value = value
    if type(value) is float and math.isfinite(value):
        with np.errstate(over="ignore"):
            result = value if float(np.float32(value)) == value else np.float64(value)
    return result


def _special_ids(checkpoint: Checkpoint) -> dict[str, Value]:
    """Returns the keys and ids of the special tokens that generation uses; they replace the tokenizer's."""
    ids = {"bos": special_id(checkpoint, "bos_token_id"), "padding": special_id(checkpoint, "pad_token_id")}
    ids |= dict(zip(_EOS_KEYS, _eos_ids(checkpoint), strict=False))
    return {f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items() if index is not None}


def _eos_ids(checkpoint: Checkpoint) -> list[int]:
    """Returns the ids of the EOS tokens in the order of `_EOS_KEYS`; there are no keys for further ids."""
    ids = list(checkpoint.generation.eos_token_ids)
    eos = checkpoint.config.eos_token_id
    first = next((index for index in (eos if isinstance(eos, list) else [eos]) if index in ids), None)
    others = [index for index in ids if index != first]
    return [*([] if first is None else [first]), *reversed(others)]


def _setting_notes(checkpoint: Checkpoint) -> list[str]:
    """Returns notes on the settings that the file cannot hold."""
    lost = _eos_ids(checkpoint)[len(_EOS_KEYS) :]
    notes = [f"tokens {lost} end answers too, but GGUF has no key for them"] if lost else []
    notes += config_notes(checkpoint)
    if checkpoint.kind != "gguf":  # whose generation settings are copied
        notes += generation_notes(checkpoint, sampling_fields(checkpoint.generation))
    return notes


def _rope_keys(config: LlamaConfig) -> dict[str, Value]:
    scaling: dict[str, Any] = config.rope_scaling or {"rope_type": "default"}
    kind, prefix = scaling["rope_type"], "llama.rope.scaling."
    original = scaling.get("original_max_position_embeddings")
    if kind == "default":
        return {}
    if kind == "linear":
        return {f"{prefix}type": "linear", f"{prefix}factor": float(scaling["factor"])}
    if kind == "yarn":
        return _yarn_keys(scaling, prefix)
    if kind == "llama3":
        key = f"{prefix}original_context_length"
        return {} if original == _ORIGINAL_CONTEXT else {key: int(original or _ORIGINAL_CONTEXT)}
    if kind == "longrope":
        return {
            f"{prefix}type": "longrope",
            f"{prefix}original_context_length": int(scaling["original_max_position_embeddings"]),
            f"{prefix}attn_factor": float(scaling["attention_factor"]),
        }
    raise CheckpointError(
        f"rope scaling of type {kind!r} depends on the text's length, which a GGUF file cannot express; convert to hf"
    )


def _yarn_keys(scaling: dict[str, Any], prefix: str) -> dict[str, Value]:
    lost = [key for key in ("mscale", "mscale_all_dim") if scaling.get(key)]
    if lost or scaling.get("truncate") is False:
        raise CheckpointError(f"GGUF cannot hold yarn's {', '.join(lost) or 'truncate'}, which is set; convert to hf")
    factor = float(scaling["factor"])
    keys: dict[str, Value] = {
        f"{prefix}type": "yarn",
        f"{prefix}factor": factor,
        f"{prefix}original_context_length": int(scaling["original_max_position_embeddings"]),
    }
    for beta in ("beta_fast", "beta_slow"):
        if scaling.get(beta) is not None:
            keys[f"{prefix}yarn_{beta}"] = float(scaling[beta])
    if scaling.get("attention_factor") is not None:
        # ggml multiplies this key's value by 1 + 0.1 ln(factor).
        keys[f"{prefix}attn_factor"] = float(scaling["attention_factor"]) / (1 + 0.1 * math.log(factor))
    return keys


def rope_tensors(config: LlamaConfig) -> dict[str, NDArray[np.float32]]:
    """Returns the tensors of rope scaling, by their names in the file: divisors of the rotary frequencies."""
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(scaling[f"{kind}_factor"], np.float32) for kind in ("long", "short")
        }
    if scaling.get("rope_type") != "llama3":
        return {}
    pairs = config.head_dim // 2
    wavelength = 2 * np.pi * config.rope_theta ** (np.arange(pairs) / pairs)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    smooth = np.clip((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32)}
