"""`puna convert` and the conversion command of Hugging Face's documentation."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from puna import LlamaConfig, convert, load_tokenizer
from puna.checkpoint import open_checkpoint
from puna.config import GenerationConfig
from puna.convert_llama_weights_to_hf import main as documented_command
from puna.errors import CheckpointError, StorageError
from puna.formats.gguf import open_gguf
from puna.formats.gguf_writer import write_gguf
from puna.formats.new_tensor import NewTensor
from puna.tokenizer.chat.templates import LLAMA_3
from tests.helpers.commands import run_puna
from tests.helpers.meta_models import FAMILIES, Family, hf_tensors, write_meta
from tests.helpers.vocabularies import train_sentencepiece

FAMILY = Family("tiny", 16, None, 2, "2", vocab=420)


def run_convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `puna convert` with these arguments."""
    return run_puna("convert", *arguments)


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Meta's layout with a SentencePiece tokenizer."""
    folder = write_meta(tmp_path_factory.mktemp("commands") / "meta", FAMILY, hf_tensors(FAMILY))
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    return folder


def test_plan_and_result_are_shown(meta: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "puna", "convert", str(meta), str(tmp_path / "out")]
    options = ["--to", "hf", "--dtype", "bfloat16", "--verify"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for part in (
        "(meta)",
        "21 f16 -> 21 bf16",
        "in 1 file(s): model.safetensors",
        "free",
        "memory",
        "context of 4096",
    ):
        assert part in run.stderr
    assert "verified   21 tensors" in run.stdout and "NLL" in run.stdout and "lm_head.weight" in run.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "model.safetensors"}
    text = "The llama lives in the high grassland."
    assert load_tokenizer(tmp_path / "out").encode(text) == load_tokenizer(meta).encode(text)


def test_a_note_describes_the_path_that_overwrite_replaces(meta: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("three years of work")
    run = run_convert(meta, tmp_path / "out.gguf", "--quantize", "q8_0", "--overwrite")
    assert f"note       replaces {tmp_path}/out.gguf (19 bytes), which is not a GGUF file" in run.stderr
    run = run_convert(meta, tmp_path / "out.gguf", "--quantize", "q8_0", "--overwrite", "--json")
    (note,) = [text for text in json.loads(run.stdout)["notes"] if text.startswith("replaces")]
    assert note.endswith("MB), a GGUF file")
    (tmp_path / "folder" / "photos").mkdir(parents=True)
    (tmp_path / "folder" / "photos" / "llama.jpg").write_bytes(b"x")
    (tmp_path / "folder" / "config.json").write_text("{}")
    run = run_convert(meta, tmp_path / "folder", "--overwrite")
    assert f"replaces the folder {tmp_path}/folder with 2 files" in run.stderr
    assert "1 do not look like parts of a model: photos/llama.jpg" in run.stderr
    run = run_convert(meta, tmp_path / "new")
    assert run.returncode == 0 and "replaces" not in run.stderr


def test_the_time_of_a_conversion_includes_the_verification(
    meta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_module = importlib.import_module("puna.convert.run")
    compare = run_module.compare_nll
    steps: list[str] = []

    def slow_compare(*arguments):
        time.sleep(0.3)
        return compare(*arguments)

    monkeypatch.setattr(run_module, "compare_nll", slow_compare)
    assert convert(meta, tmp_path / "out", verify=True, on_step=steps.append).conversion.seconds > 0.3
    assert steps == ["Writing", "Reading back", "Measuring rounding errors", "Running both models on a sample text"]


def test_a_name_that_ends_with_gguf_selects_the_layout(meta: Path, tmp_path: Path) -> None:
    converted = convert(meta, tmp_path / "m.gguf")
    assert converted.conversion.plan.layout == "gguf"
    assert str(converted).startswith(f"{tmp_path / 'm.gguf'}: {converted.conversion.bytes / 1e6:.1f} MB in ")
    with pytest.raises(StorageError, match="--to gguf"):
        convert(meta, tmp_path / "m.gguf", to="hf")
    with pytest.raises(StorageError, match="--overwrite"):
        convert(meta, tmp_path / "m.gguf")


def test_quantised_models_are_gguf_files_by_default_and_json_is_printed(meta: Path, tmp_path: Path) -> None:
    run = run_convert(meta, tmp_path / "m.gguf", "--quantize", "Q4_K_M", "--json")
    report = json.loads(run.stdout)
    assert report["plan"]["layout"] == "gguf" and report["plan"]["kind"] == "meta"
    assert report["bytes"] == (tmp_path / "m.gguf").stat().st_size > report["plan"]["bytes"]
    # rows of 128 weights do not fill the 256 weights of a q4_K block
    assert set(report["plan"]["fallbacks"].values()) == {"q5_0", "q8_0"} and report["errors"]["mlp.up_proj.weight"] > 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--to", "onnx"), 2, "'onnx' is not one of 'hf', 'meta', 'gguf'"),
        (("--quantize", "q9"), 2, "format 'q9' is unknown"),
        (("--quantize", "q8_0", "--to", "hf"), 2, "only GGUF files hold quantised weights"),
        (("--quantize", "q8_0", "--dtype", "float16"), 2, "only GGUF files hold quantised weights"),
        (("--dtype", "float8"), 2, "'float8' is not one of"),
        (("--to", "gguf", "--shards", "2"), 2, "a GGUF model is one file"),
        (("--to", "meta", "--shards", "3"), 1, "cannot be divided among 3 shards"),
        (("--to", "hf", "--shards", "99"), 1, "99 shards for 21 tensors"),
        (("--shard-size", "many"), 2, "size of a shard is 'many'"),
        (("--kv-heads", "5"), 1, "cannot be pooled from 16"),
        (("--llama-version", "9"), 2, "'9' is not one of"),
        (("--calibrate", "x.txt"), 2, "set quantize to a mix or block format"),
        (("--calibrate", "x.txt", "--quantize", "f16"), 2, "set quantize to a mix or block format"),
        (("--calibrate", "x.txt", "--quantize", "q8_0"), 1, "x.txt cannot be read"),
        (("--to", "meta", "--shard-size", "1GB"), 2, "shard_size applies only to Hugging Face's layout"),
        (("--shards", "2", "--shard-size", "1GB"), 2, "shards is given too"),
        (("--to", "meta", "--instruct"), 1, "which Meta's layout cannot hold"),
        (("--instruct",), 1, "the tokenizer lacks <|e"),
        (("--quantize", "q8_0", "--threads", "100000000000"), 2, "from 1 to 256, got '100000000000'"),
        (("--tokenizer-only", "--dtype", "float16"), 2, "--dtype applies to weights"),
        (("--tokenizer-only", "--verify"), 2, "--verify applies to weights"),
        (("--tokenizer-only", "--to", "meta", "--instruct"), 1, "which Meta's layout cannot hold"),
    ],
)
@pytest.mark.slow
def test_invalid_arguments_are_refused(
    arguments: tuple[str, ...], status: int, message: str, meta: Path, tmp_path: Path
) -> None:
    run = run_convert(meta, tmp_path / "out", *arguments)
    error = " ".join(run.stderr.split())
    assert run.returncode == status and message in error and "Traceback" not in run.stderr, run.stderr
    assert not any(tmp_path.iterdir())


def test_options_of_one_layout_are_refused_for_other_layouts(meta: Path, tmp_path: Path) -> None:
    assert run_convert(meta, tmp_path / "hf").returncode == 0
    run = run_convert(tmp_path / "hf", tmp_path / "out", "--llama-version", "2")
    assert run.returncode == 1 and "a Llama version ('2') applies only to Meta's files" in run.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="0 shards"):
        convert(meta, tmp_path / "out", to="meta", shards=0)


@pytest.mark.slow
def test_notes_of_verify_are_shown(meta: Path, tmp_path: Path) -> None:
    run = run_convert(meta, tmp_path / "m.gguf", "--quantize", "q8_0", "--verify")
    assert "includes the rounding of activations to 8 bits" in run.stdout
    assert "context of" in run.stderr and "context of" not in run.stdout  # shown only with the plan
    assert run_convert(meta, tmp_path / "hf").returncode == 0
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text()) | {"max_position_embeddings": 1}
    path.write_text(json.dumps(config))
    run = run_convert(tmp_path / "hf", tmp_path / "out", "--verify")
    assert "was not measured: a context of 1 tokens" in run.stdout and run.returncode == 0


@pytest.mark.parametrize(
    ("file", "key", "value", "to", "message"),
    [
        ("generation_config.json", "bos_token_id", 10**30, "gguf", "it must be a whole number, from 0 to 2^63 - 1"),
        ("config.json", "my_key", float("nan"), "hf", "config.json would contain a value that JSON cannot hold"),
        ("tokenizer_config.json", "added_tokens_decoder", {"300000000": {"content": "<x>"}}, "gguf", "has 300000001"),
    ],
)
@pytest.mark.slow
def test_values_that_cannot_be_written_are_refused(
    file: str, key: str, value: object, to: str, message: str, meta: Path, tmp_path: Path
) -> None:
    assert run_convert(meta, tmp_path / "hf").returncode == 0
    (tmp_path / "hf" / "tokenizer.json").unlink()
    raw = json.loads((tmp_path / "hf" / file).read_text())
    (tmp_path / "hf" / file).write_text(json.dumps(raw | {key: value}))
    run = run_convert(tmp_path / "hf", tmp_path / "out", "--to", to)
    assert run.returncode == 1 and message in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize(
    ("index", "message"),
    [(3_000_000, "3000001 tokens and the embedding 420 rows"), (300_000_000, "the limit is 4000000")],
)
def test_an_id_larger_than_any_vocabulary_is_refused(meta: Path, tmp_path: Path, index: int, message: str) -> None:
    """An id in tokenizer.json is refused before memory for all smaller ids is allocated."""
    assert run_convert(meta, tmp_path / "hf").returncode == 0
    (tmp_path / "hf" / "tokenizer.model").unlink()
    path = tmp_path / "hf" / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["vocab"]["<0x17>"] = index
    path.write_text(json.dumps(raw))
    started = time.perf_counter()
    run = run_convert(tmp_path / "hf", tmp_path / "out", "--to", "gguf")
    assert run.returncode == 1 and message in run.stderr, run.stderr
    assert time.perf_counter() - started < 60


def test_a_tokenizer_with_contradictory_parts_is_refused(meta: Path, tmp_path: Path) -> None:
    assert run_convert(meta, tmp_path / "hf").returncode == 0
    (tmp_path / "hf" / "tokenizer.model").unlink()
    path = tmp_path / "hf" / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<nowhere>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    path.write_text(json.dumps(raw))
    run = run_convert(tmp_path / "hf", tmp_path / "out", "--to", "gguf")
    assert run.returncode == 1 and "is not a tokenizer.json" in run.stderr and "Traceback" not in run.stderr, run.stderr


def test_a_gguf_file_without_token_types_is_converted(meta: Path, tmp_path: Path) -> None:
    assert run_convert(meta, tmp_path / "m.gguf", "--to", "gguf").returncode == 0
    file = open_gguf(tmp_path / "m.gguf")
    keys = {key: value for key, value in file.metadata.items() if key != "tokenizer.ggml.token_type"}
    tensors = [NewTensor(t.name, t.format, t.shape, np.array(t.data)) for t in file.tensors.values()]
    write_gguf(tmp_path / "bare.gguf", keys, tensors)
    run = run_convert(tmp_path / "bare.gguf", tmp_path / "out.gguf", "--to", "gguf", "--pad-vocab-to", "64")
    assert run.returncode == 0, run.stderr
    assert len(open_gguf(tmp_path / "out.gguf").metadata["tokenizer.ggml.token_type"]) == 448


def test_file_names_that_are_not_utf8_are_accepted(meta: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"src\xff")
    shutil.copytree(meta, folder)
    for to in ("hf", "gguf"):
        run = subprocess.run(
            [sys.executable, "-m", "puna", "convert", folder, tmp_path / to, "--to", to],
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def test_tokenizer_only_writes_no_weights(meta: Path, tmp_path: Path) -> None:
    assert run_convert(meta, tmp_path / "tok", "--tokenizer-only").returncode == 0
    assert not list((tmp_path / "tok").glob("*.safetensors"))
    assert len(load_tokenizer(tmp_path / "tok")) == 420
    second_run = run_convert(meta, tmp_path / "tok", "--tokenizer-only")
    assert second_run.returncode == 1 and "exists already" in second_run.stderr
    failed_run = run_convert(tmp_path, tmp_path / "none", "--tokenizer-only")
    assert failed_run.returncode == 1 and not (tmp_path / "none").exists()


def test_the_command_of_the_documentation_runs(meta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download = tmp_path / "download"  # as for Llama 1: one folder per size, and a tokenizer next to these folders
    shutil.copytree(meta, download / "7B")
    (download / "7B" / "tokenizer.model").rename(download / "tokenizer.model")
    run = subprocess.run(
        [sys.executable, "-m", "puna.convert_llama_weights_to_hf", "--input_dir", str(download), "--model_size", "7B",
         "--output_dir", str(tmp_path / "out"), "--safe_serialization", "True"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert open_checkpoint(tmp_path / "out").config.vocab_size == 420 and len(load_tokenizer(tmp_path / "out")) == 420

    folders = ["--input_dir", str(download), "--output_dir"]
    size = ["--model_size", "7B"]
    assert documented_command([*folders, str(tmp_path / "v1"), *size, "--llama_version", "1", "--num_shards", "2"]) == 0
    assert LlamaConfig.from_pretrained(tmp_path / "v1").max_position_embeddings == 2048
    assert documented_command([*folders, str(tmp_path / "guard"), *size, "--llama_version", "Guard-3"]) == 0
    # The release is detected: Llama 2.
    assert LlamaConfig.from_pretrained(tmp_path / "guard").max_position_embeddings == 4096
    assert documented_command([*folders, str(tmp_path / "tok"), "--model_size", "tokenizer_only"]) == 0
    assert not list((tmp_path / "tok").glob("*.safetensors"))
    capsys.readouterr()
    for arguments, message in (
        (["--model_size", "13B"], "no params.json, nor in 13B. The folder has 7B"),
        ([*size, "--num_shards", "8"], "2 shards, but --num_shards is 8"),
        ([*size, "--safe_serialization", "False"], "--safe_serialization false is not supported"),
        ([*size, "--push_to_hub"], "--push_to_hub is not supported"),
        ([*size, "--special_tokens", "<a>"], "--special_tokens is not supported"),
    ):
        assert documented_command([*folders, str(tmp_path / "no"), *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit):
        documented_command([*folders, str(tmp_path / "no"), *size, "--safe_serialization", "maybe"])
    assert "'maybe' is neither true nor false" in capsys.readouterr().err


def write_llama_3(folder: Path, ranks: int) -> Path:
    """Writes a model in Meta's layout with the first `ranks` tokens of Llama 3 and its 256 special tokens."""
    llama_models = pytest.importorskip("llama_models")
    file = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    family = next(candidate for candidate in FAMILIES if candidate.name == "llama3.2-1b")
    family = replace(family, vocab=ranks + 256)
    write_meta(folder, family, hf_tensors(family, layers=1))
    (folder / "tokenizer.model").write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:ranks]))
    return folder


@pytest.mark.slow
def test_llama_3_gets_its_chat_template_and_end_tokens(tmp_path: Path) -> None:
    folder = write_llama_3(tmp_path / "meta", 128000)
    assert documented_command(["--input_dir", str(folder), "--output_dir", str(tmp_path / "hf"), "--instruct"]) == 0
    checkpoint = open_checkpoint(tmp_path / "hf")
    assert checkpoint.generation_config is not None
    assert checkpoint.generation_config.eos_token_id == [128001, 128008, 128009]
    tokenizer = load_tokenizer(tmp_path / "hf")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert ids[:2] == [128000, 128006] and len(tokenizer) == 128256
    run = run_convert(tmp_path / "hf", tmp_path / "back", "--to", "meta", "--json")
    assert run.returncode == 0 and json.loads(run.stdout)["notes"] == []
    model = (folder / "tokenizer.model").read_bytes()
    assert (tmp_path / "back" / "tokenizer.model").read_bytes().split() == model.split()
    run = run_convert(folder, tmp_path / "m.gguf", "--to", "gguf", "--quantize", "q8_0", "--instruct")
    assert run.returncode == 0
    converted, original = load_tokenizer(tmp_path / "m.gguf"), load_tokenizer(folder)
    assert converted.chat_template == tokenizer.chat_template
    for text in ("Hello, world 12345 don't", "  été\n\n 日本 🦙"):
        assert converted.encode(text) == original.encode(text)
    keys = open_gguf(tmp_path / "m.gguf").metadata
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"
    assert {keys[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")} == {128001, 128008, 128009}


@pytest.mark.slow
def test_llama_3_gets_its_chat_template_from_every_layout(tmp_path: Path) -> None:
    """With a small vocabulary, since all of these conversions write the tokenizer."""
    ranks = 2000
    folder = write_llama_3(tmp_path / "meta", ranks)
    convert(folder, tmp_path / "base", to="hf")
    ends = {"bos_token_id": ranks, "eos_token_id": ranks + 1}
    GenerationConfig(**ends).save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"  # has the ids of the complete vocabulary
    config.write_text(json.dumps(json.loads(config.read_text()) | ends))
    convert(tmp_path / "base", tmp_path / "chat", to="hf", instruct=True)
    assert GenerationConfig.from_pretrained(tmp_path / "chat").eos_token_id == [ranks + 1, ranks + 9]
    every_end = [ranks + 1, ranks + 8, ranks + 9]
    GenerationConfig(bos_token_id=ranks, eos_token_id=every_end).save_pretrained(tmp_path / "chat")
    convert(tmp_path / "chat", tmp_path / "m.gguf", to="gguf", quantize="q8_0")
    keys = open_gguf(tmp_path / "m.gguf").metadata
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eom", "eot")] == every_end
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"
    converted, original = load_tokenizer(tmp_path / "m.gguf"), load_tokenizer(tmp_path / "chat")
    for text in ("Hello, world 12345 don't", "  été\n\n 日本 🦙"):
        assert converted.encode(text) == original.encode(text)
    run = run_convert(tmp_path / "base", tmp_path / "direct.gguf", "--to", "gguf", "--quantize", "q8_0", "--instruct")
    assert run.returncode == 0 and load_tokenizer(tmp_path / "direct.gguf").chat_template == LLAMA_3
    file = open_gguf(tmp_path / "direct.gguf")
    removed = ("tokenizer.chat_template", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    keys = {key: value for key, value in file.metadata.items() if key not in removed}
    tensors = [NewTensor(t.name, t.format, t.shape, np.array(t.data)) for t in file.tensors.values()]
    write_gguf(tmp_path / "bare.gguf", keys, tensors)
    convert(tmp_path / "bare.gguf", tmp_path / "chat.gguf", to="gguf", instruct=True)
    assert open_gguf(tmp_path / "chat.gguf").metadata["tokenizer.ggml.eot_token_id"] == ranks + 9
    run = run_convert(tmp_path / "direct.gguf", tmp_path / "second.gguf", "--to", "gguf", "--instruct")
    assert run.returncode == 1 and "has a chat template already" in run.stderr
