"""Reports of `inspect_checkpoint` on valid and damaged checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.checkpoint import inspect_checkpoint, open_checkpoint
from puna.config import GenerationConfig
from puna.errors import CheckpointError, ModelNotFoundError
from tests.conftest import SHARED
from tests.golden.files import LAYOUTS, TOKENIZER
from tests.helpers.scripted_model import byte_tokenizer, write_scripted_model
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder, write_gguf
from tests.helpers.torch_files import DTYPES, save_torch


def test_report_on_smollm2(smollm2: Path) -> None:
    report = inspect_checkpoint(smollm2)
    assert report.errors == [] and report.warnings == []
    assert (report.kind, report.container, report.head) == ("gguf", "GGUF v3", "lm")
    assert report.parameters == 134_515_008 and report.context == 8192
    assert report.dtypes["q4_1"]["tensors"] + report.dtypes["q8_0"]["tensors"] + report.dtypes["f32"]["tensors"] == 272
    assert report.vocabulary == {"rows": 49152, "tokens": 49152} and report.chat_template is True
    assert report.special_tokens["eos"] == {"id": 2, "text": "<|im_end|>"}
    assert report.memory["cache_per_1000_tokens_float32"] == 2 * 30 * 3 * 64 * 1000 * 4
    assert 80e6 < report.memory["weights"] < report.bytes < 100e6
    assert json.loads(json.dumps(report.to_dict()))["rope"] == {"rope_type": "default", "rope_theta": 100000.0}


# SentencePiece models and their number of pieces.
TOKENIZERS = {"golden": (TOKENIZER, 512)}
if SHARED.is_dir():
    TOKENIZERS["llama2"] = (SHARED / "fixtures/tokenizers/llama2-tokenizer.model", 32000)


@pytest.fixture(params=TOKENIZERS)
def vocabulary(request: pytest.FixtureRequest) -> tuple[Path, int]:
    """The path of a SentencePiece model, and its number of pieces."""
    return TOKENIZERS[request.param]


def test_report_on_a_folder(tmp_path: Path, vocabulary: tuple[Path, int]) -> None:
    model, size = vocabulary
    config = tiny_config(vocab_size=size, dtype="float16", bos_token_id=1, eos_token_id=size + 1, something_else=3)
    tensors = {name: tensor.astype(DTYPES["bfloat16"]) for name, tensor in tiny_tensors(config).items()}
    write_folder(tmp_path, config, tensors, shards=2)
    shutil.copy(model, tmp_path / "tokenizer.model")
    report = inspect_checkpoint(tmp_path)
    assert report.errors == [] and (report.kind, report.container) == ("hf", "safetensors")
    assert len(report.files) == 2 and report.bytes == sum(file["bytes"] for file in report.files)
    parameters = sum(tensor.size for tensor in tensors.values())
    assert report.dtypes == {"bf16": {"tensors": len(tensors), "parameters": parameters, "bytes": 2 * parameters}}
    assert report.vocabulary == {"rows": size, "tokens": size}
    text = "\n".join(report.warnings)
    for part in (
        "no generation_config",
        "is float16, but the weights are bfloat16",
        f"eos token id {size + 1} is beyond",
    ):
        assert part in text
    assert "something_else" in text and report.chat_template is False
    assert "no chat template" not in text and any("built-in one of Llama 2" in note for note in report.notes)


@pytest.mark.parametrize(("ids", "differ"), [((1, 2, None), False), ((1, [7, 2], None), False), ((3, [7, 9], 5), True)])
def test_special_token_ids_that_differ_from_the_tokenizer_are_reported(
    tmp_path: Path, vocabulary: tuple[Path, int], ids: Any, differ: bool
) -> None:
    model, size = vocabulary
    config = tiny_config(vocab_size=size)
    write_folder(tmp_path, config, tiny_tensors(config))
    GenerationConfig(eos_token_id=ids[1]).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"bos_token_id": ids[0], "pad_token_id": ids[2]}))
    shutil.copy(model, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>"}')
    warnings = [line for line in inspect_checkpoint(tmp_path).warnings if "in the tokenizer" in line]
    expected = [
        "the bos token id is 3 in the configuration, but 1 ('<s>') in the tokenizer",
        "the eos token id is [7, 9] in the configuration, but 2 ('</s>') in the tokenizer",
        "the pad token id is 5 in the configuration, but 0 ('<unk>') in the tokenizer",
    ]
    assert warnings == (expected if differ else [])


def test_report_on_a_classifier_without_a_tokenizer(tmp_path: Path) -> None:
    config = tiny_config(architectures=["LlamaForSequenceClassification"], num_labels=3)
    report = inspect_checkpoint(write_folder(tmp_path, config, tiny_tensors(config, "classification"), bin=True))
    assert report.errors == [] and report.head == "classification" and report.container == "torch"
    assert any("cannot generate" in line for line in report.warnings)
    assert any("no usable tokenizer" in line for line in report.warnings)


def test_errors_and_readable_parts_are_reported(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    del tensors["model.norm.weight"]
    write_folder(tmp_path / "missing", config, tensors)
    report = inspect_checkpoint(tmp_path / "missing")
    assert report.errors and "missing tensors: 'model.norm.weight'" in report.errors[0] and report.head is None
    assert report.parameters == sum(tensor.size for tensor in tensors.values())
    assert report.architecture["hidden_size"] == 64

    shutil.copytree(tmp_path / "missing", tmp_path / "truncated")
    path = tmp_path / "truncated" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    report = inspect_checkpoint(tmp_path / "truncated")
    assert len(report.errors) == 1 and report.parameters == 0 and report.architecture["num_hidden_layers"] == 2

    (tmp_path / "missing" / "config.json").write_text('{"model_type": "mistral"}')
    report = inspect_checkpoint(tmp_path / "missing")
    assert any("mistral" in line for line in report.errors) and report.parameters > 0 and report.architecture == {}


def test_unknown_keys_and_a_truncated_gguf_file_are_reported(tmp_path: Path) -> None:
    config = tiny_config()
    keys = {"llama.vocab_size": 100, "llama.some_new_key": 1}
    path = write_gguf(tmp_path / "x.gguf", config, tiny_tensors(config), keys=keys)
    report = inspect_checkpoint(path)
    assert report.errors == [] and report.parameters > 0
    assert any("llama.some_new_key" in line for line in report.warnings)
    assert any("llama.vocab_size is 100" in line for line in report.warnings)
    path.write_bytes(path.read_bytes()[:5000])
    report = inspect_checkpoint(path)
    assert report.errors and "truncated" in report.errors[0] and report.files[0]["bytes"] == 5000


def test_the_files_of_a_damaged_meta_folder_are_reported(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LAYOUTS["meta"], tmp_path / "meta"))
    (folder / "params.json").write_text('{"dim": 64}')
    report = inspect_checkpoint(folder)
    assert "n_heads must be" in report.errors[0] and report.kind == "meta"
    assert [file["name"] for file in report.files] == ["consolidated.00.pth"] and report.bytes > 500_000
    assert report.parameters == inspect_checkpoint(LAYOUTS["meta"]).parameters
    assert report.vocabulary == {"tokens": 512}


@pytest.mark.parametrize("layers", [3, 2**31 - 1])
def test_a_layer_count_beyond_the_shards_of_a_meta_folder_is_refused_quickly(tmp_path: Path, layers: int) -> None:
    folder = Path(shutil.copytree(LAYOUTS["meta"], tmp_path / "meta"))
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | {"n_layers": layers}))
    with pytest.raises(CheckpointError, match=f"n_layers (is )?{layers}(, but the shards have 2 layers|; the limit)"):
        open_checkpoint(folder)


def test_paths_without_a_model_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        inspect_checkpoint(tmp_path / "absent")
    report = inspect_checkpoint(tmp_path)
    assert report.kind is None and "neither config.json, params.json nor a .gguf file" in report.errors[0]
    save_torch({"a": np.ones(1, np.float32)}, tmp_path / "weights.bin")
    report = inspect_checkpoint(tmp_path / "weights.bin")
    assert "has no configuration" in report.errors[0]


def test_renamed_tokens_are_noted(tmp_path: Path) -> None:
    """The model loads, but the renamed token gets a new id, which has no row in the embedding, as in transformers."""
    token = {"content": "<renamed>", "special": True, "normalized": False}
    settings = {"added_tokens_decoder": {"2": token}}
    report = inspect_checkpoint(write_scripted_model(tmp_path / "m", byte_tokenizer(), {}, settings))
    assert report.errors == []
    assert any("'<renamed>' 260 instead of 2" in note for note in report.notes)
    assert any("261 tokens, but the embedding has 260 rows" in warning for warning in report.warnings)


def test_the_report_shows_generation_settings(tmp_path: Path) -> None:
    config = tiny_config()
    write_folder(tmp_path, config, tiny_tensors(config))
    settings = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "suppress_tokens": [4],
        "foo": 1,
        "max_new_tokens": 9,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    report = inspect_checkpoint(tmp_path)
    assert {name: report.generation[name] for name in ("temperature", "top_k", "top_p", "max_tokens")} == {
        "temperature": 0.6, "top_k": 50, "top_p": 0.9, "max_tokens": 9,
    }  # fmt: skip
    assert any("suppress_tokens ([4]), foo (1)" in warning for warning in report.warnings)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 2}')
    report = inspect_checkpoint(tmp_path)
    assert report.generation["temperature"] == 0.0
    assert any("temperature 0.6, but not do_sample" in note for note in report.notes)
    (tmp_path / "generation_config.json").write_text('{"stop_strings": 3}')
    assert any("stop_strings is 3" in error for error in inspect_checkpoint(tmp_path).errors)
