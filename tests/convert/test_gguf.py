"""puna, the package gguf and llama.cpp (if installed by `make peers`) read the GGUF files that puna writes."""

from __future__ import annotations

import json
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

from puna import LLM, LlamaConfig, LlamaTokenizer, convert, load_tokenizer
from puna.checkpoint import open_checkpoint
from puna.convert.mixes import MIXES, choose, find_mix
from puna.errors import CheckpointError, TokenizerError
from puna.formats.blocks import FORMATS
from puna.formats.gguf import open_gguf
from tests.conftest import ROOT
from tests.helpers.tiny_checkpoints import llama_cpp_permute, tiny_config, tiny_tensors, write_folder
from tests.helpers.vocabularies import random_texts, train_sentencepiece

LLAMA_CPP_PYTHON = ROOT / ".peers" / "llama" / "bin" / "python"

WRITABLE_FORMATS = [name for name, form in FORMATS.items() if form.values > 1 and name.lower() in MIXES]


def stored_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Returns the format, shape and bytes of each tensor."""
    tensors = open_checkpoint(path).tensors
    return {name: (w.format.name, w.shape, np.array(w.rows()).tobytes()) for name, w in tensors.items()}


def write_tiny(folder: Path, **changes: Any) -> Path:
    """Writes a Hugging Face folder: 420 tokens; all matrices have rows of 256 weights (one K-format block) or 512."""
    config = tiny_config(
        vocab_size=420, hidden_size=256, intermediate_size=512, num_attention_heads=16, num_key_value_heads=4, **changes
    )
    write_folder(folder, config, {name: t * 0.05 for name, t in tiny_tensors(config).items()})
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("gguf") / "tiny")


def test_a_model_survives_conversion_to_gguf_and_back(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "m.gguf", to="gguf", verify=True)
    convert(tmp_path / "m.gguf", tmp_path / "hf", to="hf", verify=True)
    assert stored_tensors(model) == stored_tensors(tmp_path / "m.gguf") == stored_tensors(tmp_path / "hf")
    before, after = LlamaConfig.from_pretrained(model), LlamaConfig.from_pretrained(tmp_path / "hf")
    ignored = {"dtype", "torch_dtype", "eos_token_id", "bos_token_id"}
    fields = {key: value for key, value in before.to_dict().items() if key not in ignored}
    assert fields == {key: value for key, value in after.to_dict().items() if key not in ignored}


def test_the_package_gguf_reads_the_same_tensors_and_metadata(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "m.gguf", quantize="Q4_K_M")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["general.file_type"].contents() == 15
    assert reader.fields["llama.attention.head_count_kv"].contents() == 4
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 420
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in open_checkpoint(tmp_path / "m.gguf").tensors.items():
        stored = tensors[str(table.get_name(name, try_suffixes=(".weight", ".bias")))]
        expected = weight.to_float32()
        heads = 16 if ".q_proj." in name else 4 if ".k_proj." in name else 0
        expected = llama_cpp_permute(expected, heads) if heads else expected
        result = quants.dequantize(stored.data, stored.tensor_type).reshape(expected.shape)
        assert np.array_equal(result, expected), name


ROPES: list[dict[str, Any] | None] = [
    None,
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.5},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "longrope", "short_factor": [1 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
     "original_max_position_embeddings": 32, "attention_factor": 1.25},
]  # fmt: skip


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"] if rope else "default")
def test_rope_scaling_survives_conversion_to_gguf(rope: dict[str, Any] | None, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf", rope_scaling=rope, rope_theta=500000.0)
    convert(folder, tmp_path / "m.gguf", to="gguf")
    result = open_checkpoint(tmp_path / "m.gguf").config
    expected = LlamaConfig.from_pretrained(folder)
    assert result.rope_theta == expected.rope_theta
    before, after = expected.rope_scaling or {}, result.rope_scaling or {}
    if before.get("rope_type") == "longrope":
        before.pop("factor", None)  # `factor` only determines the attention factor
    for key, value in before.items():
        assert after[key] == (value if isinstance(value, str) else pytest.approx(value)), key


def test_models_that_gguf_cannot_express_are_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(CheckpointError, match="'dynamic' depends on the text's length"):
        convert(folder, tmp_path / "m.gguf", to="gguf")
    gelu = write_tiny(tmp_path / "gelu", hidden_act="gelu")
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu'"):
        convert(gelu, tmp_path / "m.gguf", to="gguf")
    config = tiny_config(vocab_size=400, num_labels=3, architectures=["LlamaForSequenceClassification"])
    classifier = write_folder(tmp_path / "classifier", config, tiny_tensors(config, "classification"))
    with pytest.raises(CheckpointError, match="head is 'classification'"):
        convert(classifier, tmp_path / "m.gguf", to="gguf")
    (gelu / "tokenizer.model").unlink()
    (gelu / "config.json").write_text((gelu / "config.json").read_text().replace("gelu", "silu"))
    with pytest.raises(TokenizerError, match="the folder has no tokenizer"):
        convert(gelu, tmp_path / "m.gguf", to="gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_classification_head_is_kept(tmp_path: Path) -> None:
    config = tiny_config(vocab_size=400, num_labels=3, architectures=["LlamaForSequenceClassification"])
    classifier = write_folder(tmp_path / "classifier", config, tiny_tensors(config, "classification"), bin=True)
    convert(classifier, tmp_path / "out", to="hf", dtype="bfloat16")
    result = open_checkpoint(tmp_path / "out")
    assert result.head == "classification" and result.config.num_labels == 3
    assert result.tensors["score.weight"].format.name == "bf16"


@pytest.mark.parametrize("kind", ["sentencepiece", "added", "bytes"])
def test_tokenizers_encode_to_the_same_ids_after_conversion_to_gguf(
    kind: str, tmp_path: Path, tiny_model: Path
) -> None:
    source = tiny_model
    if kind != "bytes":
        source = write_tiny(tmp_path / "hf")
        tokenizer = LlamaTokenizer.from_pretrained(source, legacy=True)
        if kind == "added":
            config = tiny_config(vocab_size=430)
            source = write_folder(tmp_path / "wide", config, tiny_tensors(config))
            tokenizer.add_tokens(["<|tool|>"], special_tokens=True)
            tokenizer.add_tokens(["llama-llama"])
            tokenizer.save_pretrained(source)
    convert(source, tmp_path / "m.gguf", to="gguf")
    before, after = load_tokenizer(source), load_tokenizer(tmp_path / "m.gguf")
    rows = open_checkpoint(tmp_path / "m.gguf").config.vocab_size
    assert len(open_gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.tokens"]) == rows
    for text in random_texts(200):
        assert before.encode(text) == after.encode(text), text
    assert before.chat_template == after.chat_template


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf")
    with pytest.raises(TokenizerError, match="420 tokens and the embedding 400 rows"):
        convert(folder, tmp_path / "m.gguf", to="gguf", vocab_size=400)


def sample_ids(model: Path) -> list[int]:
    """Returns the ids on which `--verify` measures the change in negative log-likelihood."""
    text = resources.files("puna").joinpath("sample.txt").read_text("utf-8")
    context = LlamaConfig.from_pretrained(model).context_length
    return load_tokenizer(model).encode(text)[: min(512, context)]


@pytest.mark.parametrize("name", sorted({mix.name for mix in MIXES.values()} - {"f32", "f16", "bf16"}))
def test_every_mix_keeps_errors_below_its_limit(name: str, model: Path, tmp_path: Path) -> None:
    outcome = convert(model, tmp_path / "m.gguf", quantize=name.upper(), verify=True)
    file = open_gguf(tmp_path / "m.gguf")
    assert file.metadata["general.file_type"] == find_mix(name).file_type
    assert outcome.conversion.verified == len(open_checkpoint(model).tensors)
    limit = {"q2": 0.35, "q3": 0.2, "q4": 0.1, "iq": 0.1, "q5": 0.05, "q6": 0.025, "q8": 0.01}[name[:2].lower()]
    assert outcome.conversion.errors and all(0 < error < limit for error in outcome.conversion.errors.values())
    ids = sample_ids(model)
    before, after = LLM(model), LLM(tmp_path / "m.gguf")
    assert outcome.nll["before"] == pytest.approx(np.mean(before.nll(ids)), abs=1e-6)
    assert outcome.nll["after"] == pytest.approx(np.mean(after.nll(ids)), abs=1e-6) != outcome.nll["before"]
    expected, result = (llm.logits(ids[:64]) for llm in (before, after))
    assert np.linalg.norm(result - expected) < 2 * limit * np.linalg.norm(expected)


def test_mixes_choose_the_formats_of_llama_cpp() -> None:
    config = LlamaConfig(num_hidden_layers=32, num_key_value_heads=8)
    v_proj = "model.layers.{}.self_attn.v_proj.weight"
    down = "model.layers.{}.mlp.down_proj.weight"

    def format_name(mix: str, name: str, columns: int = 4096, weighted: bool = False) -> str:
        return choose(find_mix(mix), name, columns, config, weighted)[0].name

    formats = [format_name("Q4_K_M", v_proj.format(layer)) for layer in (0, 3, 4, 6, 9, 28)]
    assert formats == ["q6_K", "q6_K", "q4_K", "q6_K", "q6_K", "q6_K"]
    assert format_name("q4_k_s", v_proj.format(3)) == "q5_K" and format_name("q4_k_s", v_proj.format(4)) == "q4_K"
    assert format_name("Q3_K_M", v_proj.format(1)) == "q5_K" and format_name("Q3_K_M", v_proj.format(2)) == "q4_K"
    assert format_name("Q3_K_M", down.format(1)) == "q5_K" and format_name("Q3_K_M", down.format(20)) == "q4_K"
    assert (
        format_name("q4_0", down.format(0), weighted=True) == "q4_1" and format_name("q4_0", down.format(0)) == "q4_0"
    )
    assert format_name("q4_0", "lm_head.weight") == "q6_K" and format_name("q8_0", "lm_head.weight") == "q8_0"
    assert (
        format_name("q4_0", "lm_head.weight", 576) == "q8_0" and format_name("Q4_K_M", v_proj.format(4), 576) == "q5_0"
    )
    assert format_name("Q4_K_M", v_proj.format(4), 40) == "f16"
    with pytest.raises(CheckpointError, match="q9_X"):
        find_mix("q9_X")


def test_quantising_again_is_noted(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "q8.gguf", quantize="q8_0")
    copied = convert(tmp_path / "q8.gguf", tmp_path / "same.gguf", to="gguf")
    assert stored_tensors(tmp_path / "q8.gguf") == stored_tensors(tmp_path / "same.gguf") and not copied.notes
    requantised = convert(tmp_path / "q8.gguf", tmp_path / "q4.gguf", quantize="q4_0")
    assert "quantised again" in requantised.notes[0]
    dequantised = convert(tmp_path / "q8.gguf", tmp_path / "hf", to="hf")
    assert dequantised.conversion.plan.formats == {"f32": 21}
    for name, weight in open_checkpoint(tmp_path / "hf").tensors.items():
        assert np.array_equal(weight.to_float32(), open_checkpoint(tmp_path / "q8.gguf").tensors[name].to_float32())


_RUN_LLAMA_CPP = """
import json, sys
import numpy as np
from llama_cpp import Llama
path, texts = sys.argv[1], json.loads(sys.argv[2])
model = Llama(path, n_ctx=256, logits_all=True, verbose=False, n_threads=2)
ids = [model.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
model.eval(ids[0])
print(json.dumps({"ids": ids, "logits": np.array(model.scores[: len(ids[0])]).tolist()}))
"""


@pytest.mark.oracle
@pytest.mark.skipif(not LLAMA_CPP_PYTHON.exists(), reason="llama.cpp is installed by `make peers`")
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", *WRITABLE_FORMATS, "Q4_K_M"])
def test_llama_cpp_computes_the_same_ids_and_logits(name: str, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    if FORMATS.get(name, FORMATS["q4_K"]).values == 1:
        convert(model, file, to="gguf", dtype=name)
    else:
        convert(model, file, quantize=name)
    texts = [
        "The llama lives in the high grassland; 1234567 llamas do.",
        "  def walk(steps):\n\treturn 2",
        "été 日本 🦙",
    ]
    run = subprocess.run(
        [str(LLAMA_CPP_PYTHON), "-c", _RUN_LLAMA_CPP, str(file), json.dumps(texts)],
        capture_output=True,
        text=True,
        check=True,
    )
    llama_cpp = json.loads(run.stdout.splitlines()[-1])
    tokenizer = load_tokenizer(file)
    assert llama_cpp["ids"] == [tokenizer.encode(text) for text in texts]
    logits = LLM(file).logits(llama_cpp["ids"][0])
    expected = np.array(llama_cpp["logits"])
    error = np.sqrt(((logits - expected) ** 2).mean() / (expected**2).mean())
    assert error < (1e-2 if FORMATS.get(name, FORMATS["q4_K"]).values == 1 else 3e-2)


@pytest.mark.oracle
@pytest.mark.skipif(not LLAMA_CPP_PYTHON.exists(), reason="llama.cpp is installed by `make peers`")
@pytest.mark.parametrize("where", ["model", "tokenizer", "converted_twice"])
def test_llama_cpp_finds_user_defined_tokens(where: str, tmp_path: Path) -> None:
    """The tokens may contain spaces, and are defined in the SentencePiece model or added to the tokenizer."""
    expected = ["foo bar", "<x>"]
    folder = write_tiny(tmp_path / "hf")
    if where == "model":
        pieces = [token.replace(" ", "▁") for token in expected]
        (folder / "tokenizer.model").write_bytes(train_sentencepiece(user_defined_symbols=pieces))
    else:
        config = tiny_config(vocab_size=430)
        folder = write_folder(tmp_path / "wide", config, tiny_tensors(config))
        tokenizer = LlamaTokenizer.from_pretrained(tmp_path / "hf", legacy=True)
        tokenizer.add_tokens(expected)
        tokenizer.save_pretrained(folder)
    file = tmp_path / "m.gguf"
    convert(folder, file, to="gguf")
    if where == "converted_twice":
        convert(file, tmp_path / "back", to="hf")
        convert(tmp_path / "back", file, to="gguf", overwrite=True)
    tokens = list(open_gguf(file).metadata["tokenizer.ggml.tokens"])
    ids = [tokens.index(token) for token in expected]
    run = subprocess.run(
        [str(LLAMA_CPP_PYTHON), "-c", _RUN_LLAMA_CPP, str(file), json.dumps(["a foo bar b", "a<x>b"])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    llama_cpp_ids = json.loads(run.stdout.splitlines()[-1])["ids"]
    tokenizer = load_tokenizer(file)
    for index, text, result in zip(ids, ("a foo bar b", "a<x>b"), llama_cpp_ids, strict=True):
        assert index in result and index in tokenizer.encode(text)
