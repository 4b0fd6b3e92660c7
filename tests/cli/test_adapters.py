"""`--adapter` of the commands that run a model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from puna import LLM, LlamaConfig
from tests.cli.test_cli import as_json, run
from tests.helpers.adapters import write_random_adapter


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    config, folder = LlamaConfig.from_pretrained(tiny_model), tmp_path_factory.mktemp("adapters")
    return {kind: str(write_random_adapter(folder / kind, config, kind)) for kind in ("lora", "long_prompt", "prefix")}


@pytest.fixture(scope="module")
def llm(tiny_model, folders):
    with LLM(tiny_model, adapters=folders) as model:
        yield model


@pytest.mark.parametrize("kind", ["lora", "long_prompt", "prefix"])
def test_answers_are_those_of_the_adapter(llm, tiny_model, folders, kind):
    options = ["-m", str(tiny_model), "--adapter", folders[kind], "-n", "9"]
    expected = llm.generate("the llama", max_tokens=9, adapter=kind)
    assert as_json("generate", *options, "-p", "the llama")["ids"] == list(expected.ids)
    reply = llm.chat("the llama", max_tokens=9, adapter=kind).text
    assert run("chat", *options, input="the llama").stdout == f"{reply}\n"
    out = run("run", str(tiny_model), "the llama", *options[2:])
    assert out.stdout == f"{reply}\n", out.output
    assert reply != llm.chat("the llama", max_tokens=9).text


def test_virtual_tokens_count_in_the_context(tiny_model, folders):
    options = ["-m", str(tiny_model), "--adapter", folders["long_prompt"]]
    result = run("generate", *options, "-p", "a", "--context", "187")
    assert result.exit_code == 1
    assert "--context is 187, but the model's context is 186; lower --context" in result.stderr
    result = run("generate", *options, "-p", "x" * 600, "-n", "3")
    assert "the adapter's virtual tokens (70)" in result.stderr
    result = run("chat", *options, input="xyz" * 99)
    assert "the context has 186. Shorten the message" in result.stderr


def test_perplexity_is_that_of_the_adapter(llm, tiny_model, folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the llama lives in the andes " * 30)
    options = [str(text), "-m", str(tiny_model), "--adapter", folders["long_prompt"], "--dtype", "float32"]
    out = as_json("perplexity", *options)
    ids = llm.tokenizer.encode(text.read_text())
    windows = [ids[start : start + 186] for start in range(0, len(ids), 186)]
    losses = np.concatenate([llm.nll(window, adapter="long_prompt") for window in windows if len(window) > 1])
    assert (out["tokens"], out["nll"]) == (len(losses), pytest.approx(losses.mean(), rel=1e-5))
    assert out["perplexity"] == pytest.approx(math.exp(out["nll"]))
    against = as_json("perplexity", *options, "--against", str(tiny_model))
    assert against["nll"] == pytest.approx(out["nll"], rel=1e-5)
    assert against["against"]["kl_mean"] > 0.01
    plain = as_json("perplexity", *options[:3], *options[5:], "--context", "186")
    assert against["against"]["reference_nll"] == pytest.approx(plain["nll"], rel=1e-5)


def test_an_adapter_given_as_the_model_and_a_model_given_as_the_adapter_are_refused(tiny_model, folders):
    result = run("generate", "-m", folders["lora"], "-p", "a")
    assert f"Load the base model with `--adapter {folders['lora']}`" in result.stderr.replace("\n", " ")
    result = run("generate", "-m", str(tiny_model), "--adapter", str(tiny_model), "-p", "a")
    assert "contains neither adapter_config.json nor a single .gguf file" in result.stderr.replace("\n", " ")


def test_json_lines_of_a_chat_use_the_adapter(llm, tiny_model, folders):
    line = json.dumps({"role": "user", "content": "hi"})
    out = run("chat", "-m", str(tiny_model), "--adapter", folders["prefix"], "-n", "5", "--json", input=line)
    expected = llm.chat("hi", max_tokens=5, adapter="prefix")
    answer = json.loads(out.stdout)
    assert (answer["content"], answer["prompt_tokens"]) == (expected.text, len(expected.prompt_ids))
