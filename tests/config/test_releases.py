"""transformers 4.34.1, 4.57.6 and 5.23 read the same values as puna from the files that puna saves."""

from __future__ import annotations

import json
import runpy
import subprocess
import sysconfig
import warnings
from pathlib import Path

import pytest

from puna import GenerationConfig, LlamaConfig

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
    "my_own_key": [1, "two"],
}
ROPES = {
    "default": None,
    "linear": {"type": "linear", "factor": 2},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16},
    "yarn-mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
        "original_max_position_embeddings": 1024,
        "factor": 3.0,
    },
}
VARIANTS = {
    "labels": {"id2label": {0: "ham", 1: "spam", 2: "other"}, "problem_type": "single_label_classification"},
    "ids": {"eos_token_id": [2, 7], "pad_token_id": 0, "bos_token_id": 5},
    "flags": {"tie_word_embeddings": True, "attention_bias": True, "use_cache": False, "output_hidden_states": True},
    "heads": {"mlp_bias": True, "attention_dropout": 0.1, "head_dim": 16, "pretraining_tp": 1, "hidden_act": "gelu"},
}


def interpreter(release: str) -> str:
    """Returns the Python interpreter of the environment with an earlier release of transformers."""
    python = ROOT / ".oracles" / release / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment for transformers {release}; make test sets it up")
    return str(python)


def read(release: str, folders: list[Path]) -> list[dict]:
    """Returns the fields that a release reads from each folder; 4.57.6 uses the PyTorch of this environment."""
    if release == "5.23.0":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_folder = runpy.run_path(str(ROOT / "tests/oracles/read_config.py"))["read"]
            return json.loads(json.dumps([read_folder(folder) for folder in folders]))
    add_torch = f"import sys; sys.path.append({sysconfig.get_paths()['purelib']!r})\n" if release == "4.57.6" else ""
    script = (ROOT / "tests/oracles/read_config.py").read_text()
    run = subprocess.run(
        [interpreter(release), "-W", "ignore", "-c", add_torch + script, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def save(folder: Path, **fields) -> LlamaConfig:
    """Saves a model configuration and a generation configuration; returns the former."""
    config = LlamaConfig(**{**SHAPE, **fields})
    config.save_pretrained(folder)
    GenerationConfig(max_new_tokens=17, eos_token_id=[2, 7], do_sample=True, temperature=0.5).save_pretrained(folder)
    return config


@pytest.mark.parametrize("release", ["4.34.1", "4.57.6", "5.23.0"])
@pytest.mark.oracle
def test_each_release_reads_the_same_values(release, tmp_path):
    if release != "4.34.1":
        pytest.importorskip("torch")  # release 4.57.6 loads PyTorch from this environment
    cases = {**{name: {"rope_scaling": rope} for name, rope in ROPES.items()}, **VARIANTS}
    configs = {name: save(tmp_path / name, **fields) for name, fields in cases.items()}
    for (name, config), result in zip(configs.items(), read(release, [tmp_path / n for n in cases]), strict=True):
        if release == "4.34.1" and name in ("yarn", "yarn-mscale", "llama3", "longrope"):
            assert "rope_scaling" in result["error"]  # 4.34.1 supports linear and dynamic only
            continue
        assert "error" not in result, (name, result)
        _check_fields(name, config, result)
        _check_rope(release, config, result)


def _check_fields(name, config, result):
    for field, value in result.items():
        if field in ("rope", "rope_scaling", "generation", "id2label", "label2id"):
            continue
        assert value == getattr(config, "dtype_name" if field == "dtype" else field), (name, field)
    assert {int(key): value for key, value in result["id2label"].items()} == config.id2label
    assert result["label2id"] == config.label2id
    assert result["generation"] == {
        "max_new_tokens": 17,
        "temperature": 0.5,
        "do_sample": True,
        "eos_token_id": [2, 7],
    }


def _check_rope(release, config, result):
    expected = config.rope_scaling or {"rope_type": "default"}
    settings = dict(result["rope_scaling"] or {"rope_type": "default"})
    settings.pop("rope_theta", None)
    settings.setdefault("rope_type", settings.get("type"))
    settings.pop("type", None)
    assert settings == expected
    if release != "4.34.1" and expected["rope_type"] != "default":
        torch = pytest.importorskip("torch")
        from puna.model.rope import LlamaRotaryEmbedding

        frequencies, factor = result["rope"]
        rotary = LlamaRotaryEmbedding(config)
        short = rotary.inv_freq[0] if expected["rope_type"] == "longrope" else rotary.inv_freq
        torch.testing.assert_close(torch.tensor(frequencies).float(), short, rtol=1e-6, atol=0)
        assert factor == pytest.approx(rotary.scaling, rel=1e-6)
