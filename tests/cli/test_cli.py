"""The command `puna`, run as by a user: output, JSON, errors, exit statuses, Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from puna import LLM, LlamaTokenizer, __version__
from puna.cli import app
from tests.golden.files import LAYOUTS, TEXT, read_expected
from tests.helpers.torch_files import HAS_TORCH

PUNA = str(Path(sys.executable).with_name("puna"))


def run(*arguments: str, input: str | None = None):
    """Runs the command `puna` in this process."""
    return CliRunner().invoke(app, list(arguments), input=input)


def as_json(*arguments: str, input: str | None = None) -> dict:
    """Runs the command `puna` with --json and returns the parsed output."""
    result = run(*arguments, "--json", input=input)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_command_has_help():
    contents = run("--help").stdout
    for command in ("generate", "chat", "tokenize", "perplexity", "inspect", "info"):
        assert command in contents
        page = run(command, "--help")
        assert page.exit_code == 0
        assert "--json" in page.stdout
        assert f"{command} [OPTIONS]" in page.stdout
    assert run("--version").stdout == f"puna {__version__}\n"


def test_generate_json_has_all_fields(tiny_model):
    out = as_json("generate", "--model", str(tiny_model), "--prompt", "the llama", "--max-tokens", "12")
    assert list(out) == [
        "prompt_ids",
        "ids",
        "text",
        "finish_reason",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    ]
    completion = LLM(tiny_model).generate("the llama", max_tokens=12)
    assert (out["text"], out["ids"]) == (completion.text, list(completion.ids))


def test_generate_prints_prompt_and_answer(tiny_model):
    completion = LLM(tiny_model).generate("the llama", max_tokens=12)
    result = run("generate", "-m", str(tiny_model), "-p", "the llama", "--max-tokens", "12")
    assert result.stdout == f"the llama{completion.text}\n"
    assert (
        run("generate", "-m", str(tiny_model), "-p", "-", "--max-tokens", "12", input="the llama").stdout
        == result.stdout
    )


def test_generate_renders_a_chat(tiny_model):
    arguments = ["generate", "-m", str(tiny_model), "-p", "hi", "--max-tokens", "5"]
    ids = as_json(*arguments, "--chat", "--system", "be brief")["prompt_ids"]
    assert LLM(tiny_model).tokenizer.decode(ids) == "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>"
    assert run(*arguments, "--system", "be brief").exit_code == 2


def test_tokenize_shows_ids_and_pieces(tiny_model):
    out = as_json("tokenize", "--model", str(tiny_model), "the llama")
    assert out["ids"] == LLM(tiny_model).tokenizer.encode("the llama")
    assert "".join(out["pieces"]) == "theĠllama"
    assert run("tokenize", "-m", str(tiny_model), "the llama").stdout.count("\n") == len(out["ids"])


def test_tokenize_explains_a_vocabulary_of_sentencepiece(tmp_path):
    from tests.helpers.vocabularies import train_sentencepiece

    model = tmp_path / "tokenizer.model"
    model.write_bytes(train_sentencepiece())
    text = "the</s>llama é"
    out = as_json("tokenize", "-m", str(model), "--explain", text)
    assert out["bytes"][0] is None and bytes.fromhex("".join(out["bytes"][1:])).decode() == f" {text}"
    legacy, new = LlamaTokenizer(model, legacy=True).encode(text), LlamaTokenizer(model, legacy=False).encode(text)
    behaviours = out["behaviours"]
    assert list(behaviours) == ["sp", "hf-legacy", "hf", "tokenizer.json"]
    assert behaviours["sp"]["ids"] == out["ids"] and behaviours["sp"]["difference"] is None
    assert [behaviours[name]["ids"] for name in ("hf-legacy", "hf")] == [legacy, new]
    assert behaviours["hf-legacy"]["difference"] == next(
        i for i, p in enumerate(zip(out["ids"], legacy, strict=False)) if len({*p}) > 1
    )
    page = run("tokenize", "-m", str(model), "--explain", text).stdout
    assert "hf-legacy: " in page and "different from token" in page and "20 74 68 65" in page
    same = run("tokenize", "-m", str(model), "--explain", "the llama").stdout
    assert same.count("the same tokens") == 3


def test_tokenize_explains_a_vocabulary_with_one_behaviour(tiny_model):
    out = as_json("tokenize", "-m", str(tiny_model), "--explain", "the llama")
    assert list(out["behaviours"]) == ["tokenizer.json"] and out["behaviours"]["tokenizer.json"]["ids"] == out["ids"]
    page = run("tokenize", "-m", str(tiny_model), "--explain", "the llama").stdout
    assert "only this behaviour" in page


def test_perplexity_follows_its_definition(tiny_model, tmp_path):
    text = "the llama lives in the high grassland " * 8
    (tmp_path / "text.txt").write_text(text)
    llm = LLM(tiny_model)
    ids = llm.tokenizer.encode(text)[:50]
    losses = np.concatenate([llm.nll(ids[start : start + 16]) for start in range(0, 50, 16)])
    out = as_json(
        "perplexity", "-m", str(tiny_model), str(tmp_path / "text.txt"), "--context", "16", "--max-tokens", "50"
    )
    assert out["tokens"] == 50 - 4
    assert out["nll"] == pytest.approx(losses.mean(), rel=1e-6)
    assert out["perplexity"] == pytest.approx(math.exp(out["nll"]))


@pytest.mark.slow
def test_smollm2_predicts_the_golden_text_as_transformers_does(smollm2):
    out = as_json("perplexity", str(TEXT), "--context", "512", "--max-tokens", "512", "--backend", "torch")
    expected = read_expected()["smollm2"]["first"]
    assert out["tokens"] == expected["tokens"] == 511
    assert out["nll"] == pytest.approx(expected["nll"], abs=0.0001)


@pytest.mark.slow
def test_smollm2_has_its_known_loss_on_wikitext(smollm2, shared):
    text = shared / "fixtures/text/wikitext2.valid.txt"
    out = as_json("perplexity", str(text), "--context", "512", "--max-tokens", "512", "--backend", "torch")
    assert out["tokens"] == 511
    assert out["nll"] == pytest.approx(2.7511, abs=0.001)


# With quantised weights, the native backend rounds activations to eight bits. `expected` is PyTorch's nll of the same
# tokens, which takes up to two minutes to compute. The difference from it is between -0.1 and 0.2 % in a window of 512
# tokens, and 0.07 % in 8 windows.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "predicted", "expected"),
    [(4096, 4088, 2.9705), pytest.param(20_000, 19_960, 3.0113, marks=pytest.mark.soak)],
)
def test_rounding_activations_changes_the_nll_of_wikitext_by_less_than_0_3_percent(
    smollm2, shared, tokens, predicted, expected
):
    text = shared / "fixtures/text/wikitext2.valid.txt"
    out = as_json("perplexity", str(text), "--context", "512", "--max-tokens", str(tokens), "--backend", "native")
    assert out["tokens"] == predicted
    assert out["nll"] == pytest.approx(expected, rel=0.003)


def test_inspect_describes_a_model(tiny_model, smollm2):
    out = as_json("inspect", str(tiny_model))
    assert out["kind"] == "hf"
    assert out["errors"] == []
    result = run("inspect", str(smollm2))
    assert result.exit_code == 0
    for word in ("GGUF v3", "q4_1", "134,515,008", "49,152", "<|im_start|>", "chat template"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, ["error:", "'mistral'", "vocabulary"]),
        ({"num_local_experts": 8}, ["error:", "a mixture of 8 experts", "weights", "vocabulary"]),
        ({"max_position_embeddings": 1}, ["context         1 token\n"]),
        ({"pad_token_id": -1}, ["note: pad_token_id -1"]),
    ],
)
def test_inspect_shows_all_parts_that_can_be_read(tmp_path, fields, words):
    folder = Path(shutil.copytree(LAYOUTS["hf"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    result = run("inspect", str(folder))
    assert result.exit_code == ("error:" in words)
    for word in words:
        assert word in result.stdout


def test_inspect_reports_errors_and_fails(smollm2, tmp_path):
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(smollm2.read_bytes()[:50_000_000])
    result = run("inspect", str(truncated))
    assert result.exit_code == 1
    assert "error:" in result.stdout


@pytest.mark.parametrize("content", [b"hello", b""])
def test_inspect_reports_only_an_error_for_a_file_that_is_not_a_model(tmp_path, content):
    (tmp_path / "f.txt").write_bytes(content)
    result = run("inspect", str(tmp_path / "f.txt"))
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["model", "error:"]


def test_info_json_describes_the_installation():
    out = as_json("info")
    assert out["version"] == __version__
    assert out["physical_cores"] >= 1
    assert out["backends"] == {"torch": HAS_TORCH, "native": True}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["generate", "-p", "x", "-m", "/nowhere"], 1, "no such file or folder"),
        (["run", "Name a planet."], 1, "puna generate --chat 'Name a planet.'"),
        (["rm", "{tiny}", "-y"], 1, "is not a downloaded model"),
        (["generate", "-p", "x", "-m", "{tiny}", "--temperature", "-1"], 2, "temperature is -1.0"),
        (["generate", "-p", "x", "-m", "{tiny}", "--max-tokens", "9999"], 1, "context of 256"),
        (["generate", "-p", "x", "-m", "{tiny}", "--backend", "abacus"], 2, "'auto', 'native', 'torch'"),
        (["generate", "-p", "x", "-m", "/nowhere", "--stop", ""], 2, "--stop: the text is empty"),
        (["generate", "-m", "{tiny}"], 2, "there is no prompt"),
        (["generate", "-p", "x", "--max-tokens", "many"], 2, "'-n': must be a whole number of at least 0, got 'many'"),
        (["generate", "-p", "x", "--threads", "300"], 2, "must be a whole number from 1 to 256, got '300'"),
        (["generate", "-p", "x", "--threads", "1.5"], 2, "must be a whole number from 1 to 256, got '1.5'"),
        (["generate", "-p", "x", "--top-p", "half"], 2, "'--top-p': must be a number, got 'half'"),
        (["bench", "--repeat", "0"], 2, "must be a whole number of at least 1, got '0'"),
        (["convert", "a", "b", "--shards", "0"], 2, "must be a whole number of at least 1, got '0'"),
        (["perplexity", "-m", "{tiny}", "/nowhere"], 1, "/nowhere cannot be read"),
        (["perplexity", "-m", "{tiny}", "{binary}"], 1, "not UTF-8"),
        (["perplexity", "-m", "{tiny}", "{empty}"], 1, "nothing to predict"),
        (["tokenize", "-m", "{empty}", "x"], 1, "empty"),
        (["inspect", "/nowhere"], 1, "/nowhere"),
        (["frobnicate"], 2, "frobnicate"),
        (["generte"], 2, "Did you mean 'generate'?"),
        (["generate", "-p", "x", "--temprature", "1"], 2, "--temperature"),
        (["generate", "-p", "x", "-m", ""], 2, "the model's name is empty"),
        (["generate", "x", "-p", "y"], 2, "given twice"),
        (["generate", "x", "--adapter", "a", "--adapter", "b"], 2, "--adapter is given twice"),
        (["embed", "x", "--adapter", ""], 2, "'--adapter': the path is empty"),
        (["generate", "-p", "x", "-q", "-v"], 2, "contradict each other"),
        (["generate", "-f", "{binary}-"], 1, "Did you mean {binary}?"),
        (["generate", "-p", "x", "-m", "{tiny}-"], 1, "Did you mean {tiny}?"),
        (["chat", "{tiny}"], 2, "give the model with --model"),
        (["generate", "-p", "x", "-m", "{tiny}", "-c", "999"], 1, "the model's context is 256; lower --context"),
        (["perplexity", "-m", "{tiny}", "{text}", "-c", "999"], 1, "the model's context is 256; lower --context"),
        (["convert", "{tiny}", "out", "--to", "ggml"], 2, "'hf', 'meta', 'gguf'"),
        (["convert", "{tiny}", "out", "--quantize", "q9"], 2, "'q9' is unknown"),
        (["convert", "{tiny}", "out", "--quantize", "q8_0", "--calibrate", "{text}s"], 1, "Did you mean {text}?"),
        (["pull", "no-owner"], 2, "is not a model of the hub"),
    ],
)
def test_errors_print_one_message_and_set_the_exit_status(tiny_model, tmp_path, arguments, status, words):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("the llama " * 20)
    paths = {"{tiny}": tiny_model, "{binary}": tmp_path / "binary", "{empty}": tmp_path / "empty"}
    paths["{text}"] = tmp_path / "text"

    def fill(text: str) -> str:
        for name, path in paths.items():
            text = text.replace(name, str(path))
        return text

    result = run(*map(fill, arguments))
    assert result.exit_code == status
    assert fill(words) in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_ctrl_c_ends_generation_with_exit_status_130(smollm2):
    process = subprocess.Popen(
        [PUNA, "generate", "--prompt", "Once upon a time", "--max-tokens", "4000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(30).startswith(b"Once upon a time")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.decode().strip() == "puna: interrupted"


def test_a_closed_pipe_prints_no_error(tiny_model):
    line = f"{PUNA} generate -m {tiny_model} -p 'the llama' --max-tokens 200 | head -c 1"
    result = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60)
    assert result.stdout == b"t"
    assert result.stderr == b""


def test_writing_to_a_full_device_prints_one_message(tiny_model):
    line = f"{PUNA} generate -m {tiny_model} -p 'the llama' --max-tokens 3 > /dev/full"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.strip() == "puna: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("{puna} tokenize -m {tiny} hi >&-", 0, "tokens"),
        ("{puna} generate -m {tiny} -p - --max-tokens 1 <&-", 0, ""),
        ("{puna} chat -m {tiny} --json <&-", 0, ""),
        ("{puna} info >/dev/full", 1, "puna: [Errno 28]"),
        ("{puna} --help >/dev/full", 1, "puna: [Errno 28]"),
        ("{puna} generate -m {tiny} -p hi -t nan", 2, "temperature is nan"),
        ("{puna} generate -m {tiny} -p hi --threads 100000", 2, "from 1 to 256, got '100000'"),
        ("printf '\\xff' | {puna} generate -m {tiny} -p -", 1, "not UTF-8"),
        ("printf 'a\\n' | PYTHONIOENCODING=ascii {puna} chat -m {tiny} --max-tokens 1", 0, ""),
    ],
)
def test_unusual_streams_and_values_print_no_traceback(tiny_model, line, status, words):
    command = line.format(puna=PUNA, tiny=tiny_model)
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.returncode == status, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_characters_that_the_output_encoding_lacks_are_escaped(tiny_model):
    result = subprocess.run(
        [PUNA, "generate", "-m", str(tiny_model), "-p", "ü", "--max-tokens", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert result.returncode == 0
    assert result.stdout.startswith("\\xfc")


def test_line_endings_are_not_translated(tiny_model, tmp_path):
    (tmp_path / "unix").write_bytes(b"the llama\nlives")
    (tmp_path / "dos").write_bytes(b"the llama\r\nlives")
    unix, dos = (as_json("perplexity", "-m", str(tiny_model), str(tmp_path / name)) for name in ("unix", "dos"))
    assert dos["tokens"] > unix["tokens"]


@pytest.mark.filterwarnings("default")
def test_commands_use_the_model_s_generation_settings(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 40, "max_new_tokens": 7, "epsilon_cutoff": 0.4}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = ["--model", str(tmp_path), "--seed", "3"]
    expected = LLM(tiny_model).generate("the llama", max_tokens=7, temperature=1.5, top_k=40, seed=3).ids
    assert as_json("generate", "the llama", *model)["ids"] == list(expected)
    assert as_json("generate", "the llama", "--context", "40", *model)["ids"] == list(expected)
    greedy = LLM(tiny_model).generate("the llama", max_tokens=12).ids
    assert as_json("generate", "the llama", "-t", "0", "-n", "12", *model)["ids"] == list(greedy)
    chat = LLM(tiny_model).chat("the llama", max_tokens=7, temperature=1.5, top_k=40, seed=3)
    assert json.loads(run("chat", "--json", *model, input='"the llama"\n').stdout)["content"] == chat.text
    assert json.loads(run("run", str(tmp_path), "the llama", "--json", "--seed", "3").stdout)["text"] == chat.text
    result = run("generate", "x", *model)
    assert result.stderr.count("epsilon_cutoff (0.4)") == 1
    shown = run("inspect", str(tmp_path)).stdout
    assert "temperature 1.5, top_k 40" in shown and "max_tokens 7" in shown and "epsilon_cutoff (0.4)" in shown


def test_options_of_sampling_reach_the_model(tiny_model):
    model = ["--model", str(tiny_model), "-n", "12"]
    options = ["--typical-p", "0.5", "--presence-penalty", "1", "--frequency-penalty", "0.5", "-t", "1", "--seed", "4"]
    expected = LLM(tiny_model).generate("the llama", max_tokens=12, typical_p=0.5, presence_penalty=1,
                                        frequency_penalty=0.5, temperature=1, seed=4)  # fmt: skip
    assert as_json("generate", "the llama", *options, *model)["ids"] == list(expected.ids)
    chat = LLM(tiny_model).chat("the llama", max_tokens=12, typical_p=0.5, presence_penalty=1, frequency_penalty=0.5,
                                temperature=1, seed=4)  # fmt: skip
    answer = run("run", str(tiny_model), "the llama", "--json", "-n", "12", *options)
    assert json.loads(answer.stdout)["text"] == chat.text
    assert len(as_json("generate", "the llama", "--ignore-eos", "--min-tokens", "12", *model)["ids"]) == 12
