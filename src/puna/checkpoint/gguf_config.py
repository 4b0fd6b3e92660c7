"""Reads `LlamaConfig` and `GenerationConfig` from a GGUF file's metadata and tensor shapes.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "LLM". A file is refused if one of the keys in this
module changes the model in a way that `LlamaConfig` cannot express.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from puna.checkpoint.gguf_keys import GgufKeys
from puna.checkpoint.gguf_rope import rope_scaling
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError, ConfigError, show
from puna.formats.gguf import GgufFile

_NEUTRAL: dict[str, Any] = {
    "llama.expert_count": 0, "llama.expert_used_count": 0, "llama.attention.causal": True,
    "llama.attention.sliding_window": 0, "llama.attention.clamp_kqv": 0.0, "llama.attention.scale": 0.0,
    "llama.attention.max_alibi_bias": 0.0, "llama.logit_scale": 1.0, "llama.residual_scale": 1.0,
    "llama.embedding_scale": 1.0, "llama.use_parallel_residual": False, "llama.final_logit_softcapping": 0.0,
    "llama.attn_logit_softcapping": 0.0,
}  # fmt: skip
"""Keys that would change the computation, each with the only value that puna supports."""

_KNOWN_KEYS = frozenset(
    {f"llama.{key}" for key in (
        "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "tensor_data_layout",
    )} | set(_NEUTRAL)
)  # fmt: skip
"""Keys under "llama." that this module reads or checks; `gguf_rope` handles those under "llama.rope."."""


def unknown_keys(metadata: Iterable[str]) -> list[str]:
    """Returns the keys under "llama." that puna does not use."""
    return [
        key
        for key in metadata
        if key.startswith("llama.") and not key.startswith("llama.rope.") and key not in _KNOWN_KEYS
    ]


END_IDS = ("eos", "eom", "eot")
"""Names of the tokens that end a text, a message and a turn, in the order of Llama 3's ids. Each ends generation."""

SAMPLING_PREFIX = "general.sampling."

_LAST_TOKENS = SAMPLING_PREFIX + "penalty_last_n"

_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip
"""Fields of `GenerationConfig` by the names of llama.cpp's keys: `SAMPLING_*` in gguf-py/gguf/constants.py."""


def read_gguf_config(file: GgufFile) -> tuple[LlamaConfig, GenerationConfig]:
    """Returns the configurations of a GGUF model.

    Raises:
        CheckpointError: the architecture is not llama, or a key is missing or has an unsupported type or value.
        ConfigError: `LlamaConfig` refuses a value.
    """
    try:
        return _read(file)
    except ConfigError as exc:
        raise ConfigError(f"{file.path}: {exc}") from exc
    except CheckpointError as exc:
        raise CheckpointError(f"{file.path}: {exc}") from exc


def _read(file: GgufFile) -> tuple[LlamaConfig, GenerationConfig]:
    keys = GgufKeys(file.metadata)
    _check_architecture(keys)
    hidden, heads = keys.count("llama.embedding_length"), keys.count("llama.attention.head_count")
    theta = keys.number("llama.rope.freq_base", 10000.0)
    if theta <= 0:
        raise CheckpointError(f"metadata key 'llama.rope.freq_base' must be positive, got {theta}")
    head_dim = _head_dim(keys, hidden, heads)
    end_ids = [id for name in END_IDS if (id := keys.token_id(f"tokenizer.ggml.{name}_token_id")) is not None]
    eos = list(dict.fromkeys(end_ids))
    bos, pad = keys.token_id("tokenizer.ggml.bos_token_id"), keys.token_id("tokenizer.ggml.padding_token_id")
    config = LlamaConfig(
        vocab_size=_rows(file),
        hidden_size=hidden,
        intermediate_size=keys.count("llama.feed_forward_length"),
        num_hidden_layers=keys.count("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=keys.count("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=keys.count("llama.context_length"),
        rms_norm_eps=keys.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=theta,
        rope_scaling=rope_scaling(keys, file.tensors, theta, head_dim),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos[0] if eos else None,
        dtype=file.tensors["token_embd.weight"].format.torch,
        architectures=["LlamaForCausalLM"],
    )
    config.validate()
    config.add_notes(keys.notes)
    ids = {"pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos if len(eos) > 1 else config.eos_token_id}
    generation = GenerationConfig.from_stored(ids | read_sampling(keys))
    return config, generation


def _check_architecture(keys: GgufKeys) -> None:
    kind = keys.text("general.type", "model")
    if kind == "adapter":
        base = keys.text("general.base_model.0.repo_url", keys.text("general.base_model.0.name", "not named"))
        raise CheckpointError(
            f"the file is an adapter (LoRA), not a model; its base model is {base[:200]}. Merge the adapter into the "
            "base model (`llama-export-lora`), or load the base model without it"
        )
    if kind != "model":
        raise CheckpointError(f"general.type must be 'model', got {show(kind)}")
    architecture = keys.text("general.architecture", "")
    experts = keys.metadata.get(f"{architecture}.expert_count", 0)
    mixture = (
        f"a mixture of {str(experts)[:40]} experts ({architecture[:40]}.expert_count)"
        if type(experts) is int and experts > 0
        else ""
    )
    if architecture != "llama":
        of_experts = f", {mixture}" if mixture else ""
        raise CheckpointError(f"general.architecture is {show(architecture)}{of_experts}; puna runs only 'llama'")
    if mixture:
        raise CheckpointError(f"the model is {mixture}; puna runs only LLaMA models without experts")
    for key, neutral in _NEUTRAL.items():
        value = keys.metadata.get(key, neutral)
        if not isinstance(value, int | float) or value != neutral:
            raise CheckpointError(f"metadata key {key!r} is {show(value)}; puna runs only models with {neutral!r}")


def _head_dim(keys: GgufKeys, hidden: int, heads: int) -> int:
    """Returns a head's width: `key_length`, else `rope.dimension_count`, else `hidden` / `heads`; keys must agree."""
    rope_dim = keys.count("llama.rope.dimension_count", max(1, hidden // heads))
    width = keys.count("llama.attention.key_length", rope_dim)
    value_width = keys.count("llama.attention.value_length", width)
    if "llama.rope.dimension_count" in keys.metadata and rope_dim != width:
        raise CheckpointError(f"llama.rope.dimension_count is {rope_dim}; LLaMA rotates entire heads, of width {width}")
    if value_width != width:
        raise CheckpointError(
            f"llama.attention.value_length is {value_width}; in a LLaMA model it must equal the width of keys, {width}"
        )
    return width


def _rows(file: GgufFile) -> int:
    """Returns the size of the vocabulary: the rows of the embedding, even if `llama.vocab_size` differs."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError("missing tensor 'token_embd.weight'; the file is not a language model, or incomplete")
    return embedding.shape[0]


def read_sampling(keys: GgufKeys) -> dict[str, Any]:
    """Returns the fields of `GenerationConfig` that the metadata sets, and other sampling keys under their full names.

    `do_sample` is true if the temperature is positive, or if there is a filter (top_k, top_p, min_p) without it.
    """
    names = {key.removeprefix(SAMPLING_PREFIX) for key in keys.metadata if key.startswith(SAMPLING_PREFIX)}
    fields: dict[str, Any] = {
        field: _number(keys, SAMPLING_PREFIX + name) for name, field in _SAMPLING.items() if name in names
    }
    if fields.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        temperature, top_k = fields.get("temperature", 1.0), fields.get("top_k", 0)
        if isinstance(temperature, float):
            temperature = max(0.0, temperature)
        if isinstance(top_k, float):
            top_k = max(0, int(top_k))
        fields |= {"temperature": temperature, "top_k": top_k, "do_sample": temperature != 0}
    others = {
        SAMPLING_PREFIX + name: keys.metadata[SAMPLING_PREFIX + name] for name in sorted(names - _SAMPLING.keys())
    }
    if others.get(_LAST_TOKENS) == -1:  # all tokens, as `repetition_penalty` means
        del others[_LAST_TOKENS]
    plain = (bool, int, float, str)
    return fields | {key: value if isinstance(value, plain) else show(value) for key, value in others.items()}


def _number(keys: GgufKeys, key: str) -> Any:
    """Returns a number of the metadata; for another value its text, which `GenerationConfig.from_stored` ignores."""
    try:
        return keys.number(key)
    except CheckpointError:
        return show(keys.metadata[key])


def write_sampling(config: GenerationConfig) -> dict[str, int | float]:
    """Returns the metadata for a configuration that samples; empty otherwise.

    All filters are written, since llama.cpp has other defaults for missing keys.
    """
    if not config.do_sample:
        return {}
    values: dict[str, int | float] = {
        "temp": float(config.temperature),
        "top_k": max(0, config.top_k),
        "top_p": float(config.top_p),
        "min_p": float(config.min_p or 0.0),
    }
    if config.repetition_penalty != 1.0:
        values |= {"penalty_repeat": float(config.repetition_penalty), "penalty_last_n": -1}
    return {SAMPLING_PREFIX + name: value for name, value in values.items()}


def sampling_fields(config: GenerationConfig) -> frozenset[str]:
    """Returns the fields of `config` that `write_sampling` writes."""
    return frozenset(("do_sample", *_SAMPLING.values())) if config.do_sample else frozenset()
