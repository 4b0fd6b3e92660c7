"""The prompt of `puna generate` and `puna run`: argument, files and standard input; PUNA_MODEL, --quiet, --context."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from puna import LLM
from tests.cli.test_cli import as_json, run


def prompt_of(model, *arguments: str, input: str | None = None) -> str:
    """Returns the prompt that `puna generate` sends to the model."""
    out = as_json("generate", "-m", str(model), "-n", "1", *arguments, input=input)
    return LLM(model).tokenizer.decode(out["prompt_ids"])


def test_standard_input_is_appended_to_the_prompt(tiny_model):
    assert prompt_of(tiny_model, "Summarise:", input="the llama\nlives\n") == "Summarise:\nthe llama\nlives"
    assert prompt_of(tiny_model, "-p", "Summarise:", input="the llama") == "Summarise:\nthe llama"


def test_files_are_appended_in_order_before_standard_input(tiny_model, tmp_path):
    (tmp_path / "a").write_text("the llama\r\n")
    (tmp_path / "b").write_text("lives\n\n")
    files = ("-f", str(tmp_path / "a"), "--file", str(tmp_path / "b"))
    assert prompt_of(tiny_model, "say", *files, input="high") == "say\nthe llama\nlives\n\nhigh"
    assert prompt_of(tiny_model, *files) == "the llama\nlives\n"


def test_standard_input_alone_is_a_prompt_and_a_dash_keeps_it_unchanged(tiny_model):
    assert prompt_of(tiny_model, input="the llama\n") == "the llama"
    assert prompt_of(tiny_model, "-", input="the llama\n") == "the llama\n"
    assert prompt_of(tiny_model, "-p", "-", input="the llama\n") == "the llama\n"


def test_a_device_on_standard_input_is_not_read(tiny_model):
    with Path("/dev/zero").open("rb") as endless:
        command = [sys.executable, "-m", "puna", "generate", "the llama", "-m", str(tiny_model), "-n", "1", "--json"]
        assert subprocess.run(command, stdin=endless, timeout=60, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["generate", "say"], ["chat"]])
def test_a_pipe_that_stays_open_is_announced(tiny_model, arguments):
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "puna", *arguments, "-m", str(tiny_model), "-n", "1", "--quiet"]
    noisy = subprocess.Popen(command[:-1], stdin=reading, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    os.close(reading)
    try:
        assert noisy.stderr is not None
        assert noisy.stderr.readline() == b"puna: waiting for standard input; Ctrl-D ends it\n"
        os.close(writing)
        assert noisy.communicate(timeout=60)[0].startswith(b"say" if "say" in arguments else b"")
    finally:
        noisy.kill()
        noisy.wait()


def test_input_that_is_not_utf8_is_refused_with_its_line(tiny_model, tmp_path):
    (tmp_path / "latin").write_bytes(b"one\ntwo \xe9\n")
    result = run("generate", "-m", str(tiny_model), "-f", str(tmp_path / "latin"))
    assert (result.exit_code, "is not UTF-8 (line 2, byte 8: 0xe9)" in result.stderr) == (1, True)


def test_quiet_prints_only_the_answer(tiny_model):
    text = LLM(tiny_model).generate("the llama", max_tokens=6).text
    result = run("generate", "the llama", "-m", str(tiny_model), "-n", "6", "-q")
    assert (result.stdout, result.stderr) == (f"{text}\n", "")


def test_the_prompt_is_echoed_only_for_an_argument_or_a_dash(tiny_model, tmp_path):
    (tmp_path / "file").write_text("the llama")
    text = LLM(tiny_model).generate("the llama", max_tokens=6).text
    model = ["-m", str(tiny_model), "-n", "6"]
    assert run("generate", "the llama", *model).stdout == f"the llama{text}\n"
    assert run("generate", "-", *model, input="the llama").stdout == f"the llama{text}\n"
    assert run("generate", *model, input="the llama\n").stdout == f"{text}\n"
    assert run("generate", "-f", str(tmp_path / "file"), *model).stdout == f"{text}\n"


def test_verbose_prints_the_steps_and_where_an_error_was_raised(tiny_model):
    result = run("generate", "the llama", "-m", str(tiny_model), "-n", "1", "-v")
    assert "native backend, context of 256 tokens" in result.stderr
    assert "answer: 1 tokens at" in result.stderr
    assert "locate_model" in run("generate", "x", "-m", "/nowhere", "-v").stderr


def test_context_limits_prompt_and_answer(tiny_model):
    out = as_json("generate", "the llama", "-m", str(tiny_model), "-c", "20")
    assert len(out["prompt_ids"]) + len(out["ids"]) == 20
    result = run("generate", "the llama " * 20, "-m", str(tiny_model), "-c", "20")
    assert result.exit_code == 1
    assert "which fill the context of 20; raise --context" in result.stderr


@pytest.mark.parametrize(
    ("settings", "arguments", "tokens"),
    [
        ({"max_length": 12}, ["generate", "the llama"], 12),
        ({"max_length": 12}, ["generate", "the llama", "-c", "20"], 12),
        ({"max_length": 30}, ["generate", "the llama", "-c", "20"], 20),
        ({"max_length": 4096}, ["chat"], 256),
        ({}, ["run", "the llama"], 256),
        ({"max_length": 90}, ["run", "the llama", "-c", "100"], 90),
        ({"max_length": 90}, ["run", "the llama"], 90),
        ({"max_length": 4096}, ["run", "the llama"], 256),
        ({"max_new_tokens": 5, "max_length": 90}, ["run", "the llama", "-n", "200"], 205),
        ({"max_length": 90}, ["chat"], 90),
        ({}, ["chat", "-c", "100"], 100),
        ({}, ["run", "the llama", "-c", "100"], 100),
    ],
)
def test_the_default_maximum_number_of_tokens(tiny_model, tmp_path, monkeypatch, settings, arguments, tokens):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "generation_config.json").write_text(json.dumps(settings))
    requests = []
    start = LLM.start

    def record(self, prompt, **options):
        result = start(self, prompt, **options)
        requests.append(result[0].request)
        return result

    monkeypatch.setattr(LLM, "start", record)
    command, *rest = arguments
    model_arguments = [str(model)] if command == "run" else ["-m", str(model)]
    result = run(command, *model_arguments, *rest, "--json", input='"the llama"' if command == "chat" else None)
    assert result.exit_code == 0, result.output
    (request,) = requests
    assert len(request.prompt_ids) + request.max_tokens == tokens


def test_the_model_and_the_threads_come_from_the_environment(tiny_model, monkeypatch):
    monkeypatch.setenv("PUNA_MODEL", str(tiny_model))
    expected = LLM(tiny_model).generate("the llama", max_tokens=3).text
    assert as_json("generate", "the llama", "-n", "3")["text"] == expected
    assert as_json("inspect")["path"] == str(tiny_model)
    monkeypatch.setenv("PUNA_THREADS", "many")
    result = run("generate", "x")
    assert (result.exit_code, "PUNA_THREADS" in result.stderr) == (2, True)


def test_empty_variables_of_the_environment_are_ignored(tiny_model, monkeypatch):
    monkeypatch.setenv("PUNA_MODEL", "")
    monkeypatch.setenv("PUNA_THREADS", "")
    assert as_json("generate", "x", "-n", "1", "-m", str(tiny_model))["ids"]


def test_run_answers_one_message(tiny_model):
    expected = LLM(tiny_model).chat([{"role": "user", "content": "say\nthe llama"}], max_tokens=6).text
    result = run("run", str(tiny_model), "say", "-n", "6", input="the llama\n")
    assert (result.exit_code, result.stdout) == (0, f"{expected}\n")


def test_run_without_a_prompt_chats(tiny_model):
    expected = LLM(tiny_model).chat([{"role": "user", "content": "the llama"}], max_tokens=6).text
    assert run("run", str(tiny_model), "-n", "6", input="the llama").stdout == f"{expected}\n"


@pytest.mark.parametrize("arguments", [["generate"], ["run", "{tiny}"], ["chat"], ["perplexity", "{text}"]])
def test_omitted_sampling_options_have_the_defaults_of_the_model(tiny_model, tmp_path, monkeypatch, arguments):
    """The command line passes no sampling options that were not given, so that the model's defaults apply."""
    (tmp_path / "text").write_text("the llama lives")
    recorded = []
    start = LLM.start

    def record(self, prompt, **options):
        recorded.append(options)
        return start(self, prompt, **options)

    monkeypatch.setattr(LLM, "start", record)
    monkeypatch.setenv("PUNA_MODEL", str(tiny_model))
    names = {"{tiny}": str(tiny_model), "{text}": str(tmp_path / "text")}
    result = run(*[names.get(argument, argument) for argument in arguments], "--context", "30", input="the llama")
    assert result.exit_code == 0, result.output
    assert all(options.keys() <= {"max_tokens", "speculate"} for options in recorded)
    assert bool(recorded) == (arguments[0] != "perplexity")


def test_a_part_of_the_default_models_name_is_enough(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert as_json("inspect", "smollm2")["path"] == str(smollm2)
