"""Translates between Meta's `params.json` and `LlamaConfig`.

The fields are those of `ModelArgs` in Meta's llama, codellama, llama3 and llama-models repositories. They contain
neither the release of the model nor its context length: `release` infers the release from other fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError, show
from puna.files import read_json

PARAMS = "params.json"

RELEASES = ("1", "2", "code", "3", "3.1", "3.2", "3.3")
"""Meta's releases of LLaMA with this architecture; "code" is Code Llama."""

CONTEXT = {"1": 2048, "2": 4096, "code": 16384, "3": 8192, "3.1": 131072, "3.2": 131072, "3.3": 131072}
"""Context length of each release, in tokens, from the model cards."""

LLAMA3_VOCABULARY = 128256

_FACTORS = {"3.1": 8.0, "3.2": 32.0}
"""Rope scaling factors of the releases: 8 is a constant of Meta's code, 32 comes from the files of Llama 3.2."""

_FIELDS = {"dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
           "rope_theta", "use_scaled_rope", "max_batch_size", "max_seq_len"}  # fmt: skip

_MAX_NUMBER = 1e30
"""Limit on numbers that are not integers, so that their products with sizes stay finite."""

_MAX_LAYERS = 10_000
"""Limit on the layers (the largest release has 126): the tensors of all layers are listed before files are read."""

_MULTIPLES = ((256, None), (4096, 1.3), (1024, 1.3), (4096, 1.2), (256, 1.5), (256, 1.0), (1024, 1.0))
"""`multiple_of` and `ffn_dim_multiplier` of the published models, which `_feed_forward` tries first."""


@dataclass(frozen=True)
class Params:
    """The checked content of `params.json`; `heads_kv` defaults to `heads`; `grouped` means that they differ."""

    dim: int
    layers: int
    heads: int
    heads_kv: int
    grouped: bool
    ffn: int
    norm_eps: float
    theta: float
    scaled: bool
    vocabulary: int | None  # None if vocab_size is -1


def read_params(path: Path) -> Params:
    """Reads `params.json`.

    Raises:
        CheckpointError: a field is missing, has the wrong type, or is unknown: an unknown field may change the model.
    """
    return check_params(read_json(path, CheckpointError), path)


def check_params(raw: Mapping[str, Any], path: Path) -> Params:
    """Checks the content of `params.json` (see `read_params`); `path` is used in messages. A null means the default."""
    raw = {name: value for name, value in raw.items() if value is not None}
    unknown = sorted(raw.keys() - _FIELDS)
    if unknown:
        raise CheckpointError(
            f"{path}: unknown fields {', '.join(unknown)[:200]}; puna reads {', '.join(sorted(_FIELDS))}. A model with "
            "vision, experts, adapters or quantised weights is not a plain LLaMA"
        )

    def count(name: str, default: int | None = None) -> int:
        value = raw.get(name, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise CheckpointError(f"{path}: {name} must be an integer of at least 1, got {show(value)}")
        return value

    def number(name: str, default: float) -> float:
        value = raw.get(name)
        value = default if value is None else value
        if type(value) not in (int, float) or not (0 < value < _MAX_NUMBER):
            raise CheckpointError(
                f"{path}: {name} must be a positive number, got {show(value)}; the limit is {_MAX_NUMBER:g}"
            )
        return float(value)

    dim, heads, layers = count("dim"), count("n_heads"), count("n_layers")
    if layers > _MAX_LAYERS:
        raise CheckpointError(f"{path}: n_layers is {layers}; the limit is {_MAX_LAYERS}. The file is damaged")
    if dim % heads:
        raise CheckpointError(f"{path}: dim is {dim}; it must be a multiple of n_heads, {heads}")
    multiplier = None if raw.get("ffn_dim_multiplier") is None else number("ffn_dim_multiplier", 1.0)
    kv, rows, scaled = raw.get("n_kv_heads"), raw.get("vocab_size", -1), raw.get("use_scaled_rope", False)
    if type(scaled) is not bool:
        raise CheckpointError(f"{path}: use_scaled_rope must be true or false, got {show(scaled)}")
    return Params(
        dim=dim,
        layers=layers,
        heads=heads,
        heads_kv=heads if kv is None else count("n_kv_heads"),
        grouped=kv is not None and kv != heads,
        ffn=feed_forward_width(dim, count("multiple_of", 256), multiplier),
        norm_eps=number("norm_eps", 1e-5),
        theta=number("rope_theta", 500000.0 if scaled else 10000.0),
        scaled=scaled,
        vocabulary=None if rows == -1 else count("vocab_size"),
    )


def feed_forward_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Returns `FeedForward`'s width in Meta's model.py: 2/3 * 4 * dim * multiplier, rounded up to `multiple_of`."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def release(params: Params, rows: int) -> str:
    """Infers a model's release from its parameters and the number of rows of its embedding."""
    if params.scaled:
        return "3.2" if (params.dim, params.heads) in ((2048, 32), (3072, 24)) else "3.1"
    if rows >= LLAMA3_VOCABULARY:
        return "3"
    if params.theta > 10000:
        return "code"
    # Llama 2 has norm_eps 1e-5; Llama 1 has 1e-6, except its 65B, the only model of dim 8192 with ungrouped heads.
    is_llama1 = params.norm_eps < 5e-6 or (params.dim == 8192 and not params.grouped)
    return "1" if is_llama1 else "2"


def config_from_params(
    params: Params, rows: int, tied: bool, dtype: str | None, version: str
) -> tuple[LlamaConfig, GenerationConfig]:
    """Returns the configurations of a model with `rows` rows in its embedding; `version` is one of `RELEASES`."""
    scaling = None
    if params.scaled:
        scaling = {
            "rope_type": "llama3",
            "factor": _FACTORS.get(version, _FACTORS["3.1"]),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    llama3 = version.startswith("3")
    first = LLAMA3_VOCABULARY - 256  # id of Llama 3's first special token, <|begin_of_text|>
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=params.dim,
        intermediate_size=params.ffn,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.heads_kv,
        max_position_embeddings=CONTEXT[version],
        rms_norm_eps=params.norm_eps,
        rope_theta=params.theta,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
        bos_token_id=first if llama3 else 1,
        eos_token_id=first + 1 if llama3 else 2,
        dtype=dtype,
        architectures=["LlamaForCausalLM"],
    )
    config.validate()
    # <|eom_id|> and <|eot_id|> also end an answer: without them, Llama 3 would continue past its turn in a chat.
    eos_ids = [first + 1, *([first + 8] if params.scaled else []), first + 9] if llama3 else 2
    return config, GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=eos_ids)


def params_from_config(config: LlamaConfig) -> dict[str, Any]:
    """Returns the content of `params.json` for a model.

    Raises:
        CheckpointError: the model has a feature that Meta's code lacks.
    """
    _check_expressible(config)
    multiple_of, multiplier = _feed_forward(config)
    params: dict[str, Any] = {"dim": config.hidden_size}
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    params |= {"multiple_of": multiple_of, "n_heads": config.num_attention_heads}
    if config.num_key_value_heads != config.num_attention_heads:
        params["n_kv_heads"] = config.num_key_value_heads
    params |= {"n_layers": config.num_hidden_layers, "norm_eps": config.rms_norm_eps}
    if config.rope_theta != 10000.0 or config.rope_scaling is not None:  # use_scaled_rope changes the default
        params["rope_theta"] = config.rope_theta
    if config.rope_scaling is not None:
        params["use_scaled_rope"] = True
    return params | {"vocab_size": config.vocab_size}


def read_as(params: Mapping[str, Any], rows: int, version: str | None = None) -> tuple[LlamaConfig, GenerationConfig]:
    """Returns the configurations that a reader of `params` obtains; if `version` is None, the release is inferred."""
    content = check_params(params, Path(PARAMS))
    return config_from_params(content, rows, False, None, version or release(content, rows))


def _check_expressible(config: LlamaConfig) -> None:
    scaling = config.rope_scaling
    llama3 = scaling is not None and (
        scaling["rope_type"], scaling.get("low_freq_factor"), scaling.get("high_freq_factor"),
        scaling.get("original_max_position_embeddings"),
    ) == ("llama3", 1.0, 4.0, 8192)  # fmt: skip
    for is_present, feature in (
        (config.attention_bias or config.mlp_bias, "biases"),
        (config.hidden_act != "silu", f"the activation {show(config.hidden_act)}"),
        (
            config.head_dim * config.num_attention_heads != config.hidden_size,
            f"{config.num_attention_heads} heads of width {config.head_dim} at a hidden size of {config.hidden_size}",
        ),
        (
            scaling is not None and not (llama3 and scaling["factor"] in _FACTORS.values()),
            f"rope_scaling {scaling}",
        ),
    ):
        if is_present:
            raise CheckpointError(f"the model has {feature}, which Meta's format cannot express; convert to hf or gguf")


def _feed_forward(config: LlamaConfig) -> tuple[int, float | None]:
    """Returns a `multiple_of` and an `ffn_dim_multiplier` that result in the model's feed-forward width."""
    dim, width = config.hidden_size, config.intermediate_size
    base = int(2 * (4 * dim) / 3)
    for multiple_of, multiplier in (*_MULTIPLES, (1, (width + 0.5) / base)):
        if feed_forward_width(dim, multiple_of, multiplier) == width:
            return multiple_of, multiplier
    raise CheckpointError(f"no ffn_dim_multiplier results in the feed-forward width {width} at hidden size {dim}")
