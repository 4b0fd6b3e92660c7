"""Configurations read from GGUF metadata, especially rotary settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.checkpoint import open_checkpoint
from puna.checkpoint.gguf_config import read_gguf_config, read_sampling, write_sampling
from puna.checkpoint.gguf_keys import GgufKeys
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError, ConfigError, PunaError
from puna.formats.gguf import open_gguf
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_gguf


def config_of(
    path: Path, keys: dict[str, Any] | None = None, extra: dict[str, np.ndarray] | None = None, **changes: Any
) -> LlamaConfig:
    """Returns the configuration that puna reads from a GGUF file with these metadata keys and extra tensors."""
    config = tiny_config(**changes)
    return open_checkpoint(write_gguf(path / "x.gguf", config, tiny_tensors(config), keys=keys, extra=extra)).config


def llama3_divisors(width: int, theta: float, factor: float) -> np.ndarray:
    """Computes `rope_freqs.weight` like llama.cpp's converter: in float32, with the parameters of Llama 3.1."""
    frequencies = 1.0 / (theta ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width)))
    divisors = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            divisors.append(float(1 / ((1 - smooth) / factor + smooth)))
    return np.array(divisors, np.float32)


def reference_frequencies(config: LlamaConfig) -> tuple[np.ndarray, float]:
    """Returns the rotary frequencies and attention factor that transformers computes."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    reference = transformers.LlamaConfig(
        hidden_size=config.hidden_size, num_attention_heads=config.num_attention_heads, head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings, rope_parameters=config.rope_parameters,
    )  # fmt: skip
    inverse, scale = functions[config.rope_parameters["rope_type"]](reference, torch.device("cpu"))
    return inverse.numpy(), scale


@pytest.mark.parametrize("factor", [8.0, 32.0, 2.5])
@pytest.mark.parametrize(("width", "theta"), [(64, 500000.0), (128, 500000.0), (16, 10000.0)])
def test_the_rope_scaling_of_llama_3_1_is_recognised(tmp_path: Path, factor: float, width: int, theta: float) -> None:
    divisors = llama3_divisors(width, theta, factor)
    config = config_of(tmp_path, extra={"rope_freqs.weight": divisors}, head_dim=width, rope_theta=theta)
    assert config.rope_scaling == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    inverse, scale = reference_frequencies(config)
    unscaled = theta ** -(np.arange(width // 2) * 2 / width)
    np.testing.assert_allclose(inverse, unscaled / divisors, rtol=1e-5)
    assert scale == 1


@pytest.mark.parametrize("kind", ["random", "scaled"])
def test_divisors_that_do_not_follow_llama_3_1_are_kept_exactly(tmp_path: Path, kind: str) -> None:
    divisors = llama3_divisors(64, 500000.0, 8.0)
    divisors = divisors * 1.01 if kind == "scaled" else np.random.default_rng(0).uniform(1, 9, 32).astype(np.float32)
    config = config_of(tmp_path, extra={"rope_freqs.weight": divisors}, head_dim=64, max_position_embeddings=32768)
    assert config.rope_scaling is not None and config.rope_scaling["rope_type"] == "longrope"
    np.testing.assert_array_equal(np.float32(config.rope_scaling["short_factor"]), divisors)
    inverse, scale = reference_frequencies(config)
    np.testing.assert_allclose(inverse, 10000.0 ** -(np.arange(32) / 32) / divisors, rtol=1e-6)
    assert scale == 1


def test_divisors_of_one_mean_no_scaling(tmp_path: Path) -> None:
    assert config_of(tmp_path, extra={"rope_freqs.weight": np.ones(8, np.float32)}).rope_scaling is None


@pytest.mark.parametrize("kind", [None, "none"])
@pytest.mark.parametrize("formula", ["llama3", "ones"])
def test_divisors_and_an_attention_factor_are_combined(tmp_path: Path, formula: str, kind: str | None) -> None:
    divisors = llama3_divisors(64, 500000.0, 8.0) if formula == "llama3" else np.ones(32, np.float32)
    keys = {"llama.rope.scaling.attn_factor": 2.0, "llama.rope.scaling.type": kind}
    changes = {"head_dim": 64, "rope_theta": 500000.0, "max_position_embeddings": 32768}
    inverse, scale = reference_frequencies(config_of(tmp_path, keys, {"rope_freqs.weight": divisors}, **changes))
    np.testing.assert_allclose(inverse, 500000.0 ** -(np.arange(32) / 32) / divisors, rtol=1e-6)
    assert scale == 2


def test_longrope_is_read(tmp_path: Path) -> None:
    short, long = np.linspace(1, 1.5, 8, dtype=np.float32), np.linspace(1, 9, 8, dtype=np.float32)
    keys = {
        "llama.rope.scaling.type": "longrope",
        "llama.rope.scaling.original_context_length": 32,
        "llama.rope.scaling.attn_factor": 1.25,
    }
    extra = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    assert config_of(tmp_path, keys, extra).rope_scaling == {
        "rope_type": "longrope",
        "short_factor": [float(v) for v in short],
        "long_factor": [float(v) for v in long],
        "original_max_position_embeddings": 32,
        "factor": 4.0,
        "attention_factor": 1.25,
    }


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"llama.rope.scaling.type": "none"}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, None),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"llama.rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scale_linear": 2.0}, None),
        ({"llama.rope.scale_linear": 0.0}, None),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scaling.attn_factor": 1.0, "llama.rope.scaling.yarn_ext_factor": 0.0}, None),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 32,
                "llama.rope.scaling.finetuned": True,
                "llama.rope.scaling.yarn_beta_fast": 16.0,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0},
        ),
    ],
)
def test_scaling_keys_are_read(tmp_path: Path, keys: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert config_of(tmp_path, keys).rope_scaling == expected


def test_an_explicit_attention_factor_of_yarn_is_read(tmp_path: Path) -> None:
    keys = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
        "llama.rope.scaling.attn_factor": 0.5,
    }
    scaling = config_of(tmp_path, keys).rope_scaling
    assert scaling is not None and scaling["attention_factor"] == pytest.approx(0.5 * (1 + 0.1 * math.log(4)))


ONES = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("keys", "extra", "message"),
    [
        ({"llama.rope.scaling.type": "ntk"}, {}, "puna reads 'none', 'linear', 'yarn'"),
        ({"llama.rope.scaling.type": 3}, {}, "must be a string"),
        ({"llama.rope.dimension_sections": [1, 2]}, {}, "unknown rotary settings llama.rope.dimension_sections"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            {},
            "original_context_length' must be .* it is missing",
        ),
        ({"llama.rope.scaling.type": "longrope"}, {}, "are missing"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, {}, "additional factor 2.0"),
        ({"llama.rope.scaling.attn_factor": 2.0}, {}, "attn_factor is 2.0 with scaling of type 'linear'"),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.attn_factor": 2.0}, {}, "of type 'none'; LlamaConfig"),
        (
            {
                "llama.rope.scaling.type": "linear",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.attn_factor": 2.0,
            },
            {},
            "attn_factor is 2.0",
        ),
        ({"llama.rope.scaling.yarn_ext_factor": 1.0}, {}, "yarn_ext_factor is 1.0"),
        (
            {"llama.rope.scaling.type": "none", "llama.rope.scaling.yarn_attn_factor": 2.0},
            {},
            "yarn_attn_factor is 2.0",
        ),
        ({}, {"rope_factors_long.weight": ONES}, "LongRoPE needs"),
        ({}, {"rope_factors_long.weight": ONES, "rope_freqs.weight": ONES}, "exclude each other"),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
            {"rope_freqs.weight": ONES},
            "only one",
        ),
        ({}, {"rope_freqs.weight": np.ones(9, np.float32)}, r"expected \(8,\)"),
        ({}, {"rope_freqs.weight": ONES * 0}, "not positive"),
        ({}, {"rope_freqs.weight": ONES * np.nan}, "not positive"),
        ({"llama.rope.scaling.factor": float("nan")}, {}, "finite number"),
        ({"llama.rope.freq_base": -1.0}, {"rope_freqs.weight": ONES * 2}, "must be positive"),
        ({"llama.rope.dimension_count": 8}, {}, "rotates entire heads"),
        ({"llama.attention.value_length": 8}, {}, "width of keys"),
        ({"llama.attention.head_count": [4, 4]}, {}, "an integer of at least 1"),
        ({"llama.attention.head_count_kv": 3}, {}, "divide"),
        ({"llama.embedding_length": 0}, {}, "an integer of at least 1"),
        ({"llama.embedding_length": True}, {}, "an integer of at least 1"),
        ({"llama.block_count": None}, {}, "'llama.block_count' must be .* it is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, {}, "it is missing"),
        ({"llama.expert_count": 8}, {}, r"a mixture of 8 experts \(llama\.expert_count\)"),
        ({"llama.expert_count": [8, 8]}, {}, "llama.expert_count"),
        ({"general.type": "imatrix"}, {}, "must be 'model'"),
        ({"split.count": 3}, {}, "gguf-split --merge"),
        ({"tokenizer.ggml.bos_token_id": "1"}, {}, "must be a token id"),
    ],
)
def test_unsupported_metadata_is_refused(
    tmp_path: Path, keys: dict[str, Any], extra: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(PunaError, match=message) as error:
        config_of(tmp_path, keys, extra)
    assert isinstance(error.value, CheckpointError | ConfigError) and "x.gguf" in str(error.value)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny_config(), {})
    path.write_bytes(path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0qwen2"))
    with pytest.raises(CheckpointError, match="'qwen2'; puna runs only 'llama'"):
        open_checkpoint(path)


def test_all_end_tokens_are_read(tmp_path: Path) -> None:
    keys = {
        "tokenizer.ggml.eos_token_id": 7,
        "tokenizer.ggml.eot_token_id": 9,
        "tokenizer.ggml.eom_token_id": 7,
        "tokenizer.ggml.padding_token_id": 2**32 - 1,
    }
    config = tiny_config()
    checkpoint = open_checkpoint(write_gguf(tmp_path / "x.gguf", config, tiny_tensors(config), keys=keys))
    assert checkpoint.config.eos_token_id == 7 and checkpoint.config.pad_token_id is None
    assert checkpoint.generation_config is not None and checkpoint.generation_config.eos_token_id == [7, 9]


@pytest.mark.parametrize("value", [2**32 - 1, 2**64 - 1, -1])
def test_an_id_of_minus_one_means_no_token(tmp_path: Path, value: int) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny_config(), tiny_tensors(tiny_config()))
    metadata = dict(open_gguf(path).metadata) | {"tokenizer.ggml.padding_token_id": value}
    config, generation = read_gguf_config(dataclasses.replace(open_gguf(path), metadata=metadata))
    assert config.pad_token_id is None and generation.pad_token_id is None
    assert list(config.notes) == [f"tokenizer.ggml.padding_token_id {value}: -1 means that there is no such token"]


def test_the_error_for_an_adapter_names_its_base_model(tmp_path: Path) -> None:
    keys = {"general.type": "adapter", "general.base_model.0.name": "Base 1B"}
    with pytest.raises(CheckpointError, match=r"an adapter .LoRA., not a model; its base model is Base 1B"):
        config_of(tmp_path, keys)


def test_missing_sizes_are_inferred(tmp_path: Path) -> None:
    missing = dict.fromkeys(("llama.attention.key_length", "llama.attention.value_length"))
    assert config_of(tmp_path, missing, head_dim=24).head_dim == 24
    assert config_of(tmp_path, missing | {"llama.rope.dimension_count": None}).head_dim == 16
    assert config_of(tmp_path, {"llama.vocab_size": 32000, "llama.rope.freq_base": None}).vocab_size == 96


def test_sampling_settings_of_a_file_never_prevent_loading(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "general.sampling.temp": math.nan,
        "general.sampling.top_k": "x",
        "general.sampling.top_p": 1.5,
        "general.sampling.penalty_repeat": 1.5,
    }
    config = tiny_config()
    generation = open_checkpoint(write_gguf(tmp_path / "x.gguf", config, tiny_tensors(config), keys=keys)).generation
    assert (generation.temperature, generation.top_k, generation.top_p, generation.do_sample) == (1.0, 50, 1.0, True)
    assert [note.split()[0] for note in generation.unusable] == ["temperature", "top_k", "top_p"]
    assert generation.repetition_penalty == 1.5


def test_a_repetition_penalty_on_all_tokens_needs_no_further_setting() -> None:
    fields = read_sampling(GgufKeys(write_sampling(GenerationConfig(do_sample=True, repetition_penalty=1.5))))
    assert fields["repetition_penalty"] == 1.5
    assert GenerationConfig(**fields).extra == {}
    assert read_sampling(GgufKeys({"general.sampling.penalty_last_n": 64})) == {"general.sampling.penalty_last_n": 64}
