"""Fixtures: small trained vocabularies, and vocabularies of real models if their packages are installed."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from tests.helpers.vocabularies import CORPUS, train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]


def package_file(package: str, *path: str) -> Path:
    """Returns the path of a file in a package without importing the package; skips the test if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.origin).parent.joinpath(*path)


@pytest.fixture(scope="session")
def sp_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model with LLaMA's settings."""
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    path.write_bytes(train_sentencepiece())
    return path


@pytest.fixture(scope="session")
def processor(sp_model: Path) -> Any:
    """The `SentencePieceProcessor` of `sp_model`."""
    return sentencepiece.SentencePieceProcessor(model_file=str(sp_model))


@pytest.fixture(scope="session")
def byte_level_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json of byte-level BPE that has special tokens and another added token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken("<plain>", normalized=False)])
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": special[0], "eos_token": special[4], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session", params=["sp", "hf-legacy", "hf", "fast", "byte-level"])
def tokenizer(
    request: pytest.FixtureRequest, sp_model: Path, byte_level_json: Path
) -> LlamaTokenizer | LlamaTokenizerFast:
    """One tokenizer of each kind for a small vocabulary, with one special and one other added token."""
    result: LlamaTokenizer | LlamaTokenizerFast
    if request.param == "byte-level":
        result = load_tokenizer(byte_level_json)
    elif request.param == "fast":
        result = LlamaTokenizerFast(sp_model)
    else:
        result = LlamaTokenizer(sp_model, behaviour=request.param)
    result.add_tokens(["<new>"])
    result.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    result.pad_token = result.eos_token
    return result


@pytest.fixture(scope="session")
def llama3_model() -> Path:
    """Llama 3's tiktoken file, from the package llama-models."""
    return package_file("llama_models", "llama3", "tokenizer.model")


@pytest.fixture(scope="session")
def mistral_model() -> Path:
    """Mistral's first SentencePiece model, from the package mistral-common."""
    return package_file("mistral_common", "data", "tokenizer.model.v1")


@pytest.fixture(scope="session")
def oracle() -> Callable[[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """A function that runs jobs in the environment of one release of transformers (tests/oracles/read_tokenizer.py)."""

    def ask(release: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        script = ROOT / "tests" / "oracles" / "read_tokenizer.py"
        if release == "5.23.0":
            pytest.importorskip("transformers")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_job = runpy.run_path(str(script))["run"]
                return json.loads(json.dumps([run_job(job) for job in json.loads(json.dumps(jobs))]))
        python = ROOT / ".oracles" / release / "bin" / "python"
        if not python.exists():
            pytest.skip(f"no environment for transformers {release}; make test sets it up")
        run = subprocess.run(
            [str(python), "-W", "ignore", str(script)],
            input=json.dumps({"jobs": jobs}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        answers: list[dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
        return answers

    return ask
