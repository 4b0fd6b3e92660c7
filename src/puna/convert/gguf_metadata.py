"""The metadata of a GGUF file for a model: the inverse of `gguf_config` and `gguf_rope`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.gguf_config import END_IDS
from puna.config import LlamaConfig
from puna.convert.model import Model
from puna.errors import CheckpointError
from puna.formats.gguf_writer import Value
from puna.tokenizer.load import gguf_tokenizer

_OURS = (
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
    "general.type",
)

_COMPUTED = ("llama.", "tokenizer.", "split.")
"""Beginnings of the keys that a model is computed from, which are written anew."""

_ENDS = (END_IDS[0], *reversed(END_IDS[1:]))
"""Keys of the ids that end an answer, in the order in which a model's are put there."""

_ORIGINAL = 8192
"""The context that Llama 3.1's scaling starts from, which readers assume where the file does not say."""


def gguf_metadata(model: Model, file_type: int, quantised: bool, instruct: bool = False) -> dict[str, Value]:
    """All keys of the file.

    Args:
        instruct: give Llama 3's chat template to its tokenizer.

    Raises:
        CheckpointError: the model has something that GGUF has no key for.
        TokenizerError: the tokenizer cannot be expressed.
    """
    config = model.config
    if config.hidden_act != "silu":
        raise CheckpointError(f"hidden_act is {config.hidden_act!r}; llama.cpp computes LLaMAs with silu alone")
    name = model.path.stem if model.path.is_file() else model.path.resolve().name
    name = name.encode("utf-8", "replace").decode()
    keys: dict[str, Value] = {"general.architecture": "llama", "general.type": "model", "general.name": name}
    keys |= {key: _wide(value) for key, value in _descriptions(model).items()}
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
    keys |= _rope_keys(config) | gguf_tokenizer(model.tokenizer, config.vocab_size, instruct)
    # A GGUF file's own ids are kept, unless the end of a turn was added.
    return keys if model.kind == "gguf" and not instruct else keys | _ids(model)


def _descriptions(model: Model) -> dict[str, Any]:
    """What a GGUF file says about its model that nothing is computed from: author, licence, keys of anybody's."""
    stored = model.metadata
    return {key: stored[key] for key in stored if not key.startswith(_COMPUTED) and key not in _OURS}


def description_notes(model: Model) -> list[str]:
    """For other layouts: what they do not hold of that."""
    said = [key.removeprefix("general.") for key in _descriptions(model) if key != "general.name"]
    return [f"what the file says of the model ({', '.join(said)}) has no place there"] if said else []


def _wide(value: Any) -> Value:
    """A stored value; one that a float32 does not hold was a float64."""
    wide: Value = value
    if type(value) is float and math.isfinite(value):
        with np.errstate(over="ignore"):
            wide = value if float(np.float32(value)) == value else np.float64(value)
    return wide


def _ids(model: Model) -> dict[str, Value]:
    """Special ids that generation obeys, over the tokenizer's."""
    ids = {"bos": model.bos_token_id, "padding": model.pad_token_id} | dict(zip(_ENDS, _ends(model), strict=False))
    return {f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items() if index is not None}


def _ends(model: Model) -> list[int]:
    """The ids that end an answer, in the order of `_ENDS`; those beyond have no keys."""
    ends = list(model.generation.eos_token_ids)
    eos = model.config.eos_token_id
    first = next((index for index in (eos if isinstance(eos, list) else [eos]) if index in ends), None)
    others = [index for index in ends if index != first]
    return [*([] if first is None else [first]), *reversed(others)]


def gguf_notes(model: Model) -> list[str]:
    """What of the model the file does not hold."""
    beyond = _ends(model)[len(_ENDS) :]
    notes = [f"tokens {beyond} end answers too, for which GGUF has no key"] if beyond else []
    return [*notes, *model.generation_notes()]


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
        return {} if original == _ORIGINAL else {f"{prefix}original_context_length": int(original or _ORIGINAL)}
    if kind == "longrope":
        return {
            f"{prefix}type": "longrope",
            f"{prefix}original_context_length": int(scaling["original_max_position_embeddings"]),
            f"{prefix}attn_factor": float(scaling["attention_factor"]),
        }
    raise CheckpointError(
        f"rope scaling of type {kind!r} changes with each text's length, which a GGUF file cannot say; convert to hf"
    )


def _yarn_keys(scaling: dict[str, Any], prefix: str) -> dict[str, Value]:
    unsaid = [key for key in ("mscale", "mscale_all_dim") if scaling.get(key)]
    if unsaid or scaling.get("truncate") is False:
        raise CheckpointError(f"yarn scaling with {', '.join(unsaid) or 'truncate'} set has no keys in GGUF; use hf")
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
        # ggml multiplies this by its own 1 + 0.1 ln(factor).
        keys[f"{prefix}attn_factor"] = float(scaling["attention_factor"]) / (1 + 0.1 * math.log(factor))
    return keys


def rope_tensors(config: LlamaConfig) -> dict[str, NDArray[np.float32]]:
    """Tensors that scale positions: divisors of the frequencies, by their names in the file."""
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
