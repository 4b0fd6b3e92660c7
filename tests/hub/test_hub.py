"""Models of the hub: found, downloaded, gone on with, refused; and paths of this machine, which never ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from puna.checkpoint import open_checkpoint
from puna.errors import ModelNotFoundError, RequestError
from puna.hub import Reference, parse, read_reference
from puna.hub.choice import Wanted
from tests.checkpoint.tiny import tiny_config, tiny_tensors, write_folder, write_gguf
from tests.tokenizer.vocabularies import train_sentencepiece

from .stand_in import Hub, running


@dataclass
class Machine:
    """A machine of its own: a cache, a working folder, and the hub it asks."""

    hub: Hub
    home: Path

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_HOME": str(self.home / "hf"), "HF_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | ours | changes

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, cwd=self.home, env=self.environment(**changes)
        )

    def puna(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "puna", *arguments, **changes)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "work").mkdir()
    with running() as hub:
        yield Machine(hub, tmp_path / "work")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a whole model, with some of no use beside them."""
    place = tmp_path_factory.mktemp("model")
    config = tiny_config(vocab_size=420)
    write_folder(place, config, tiny_tensors(config), shards=2)
    (place / "tokenizer.model").write_bytes(train_sentencepiece())
    (place / "generation_config.json").write_text('{"max_new_tokens": 4}')
    found = {path.name: path.read_bytes() for path in place.iterdir()}
    return found | {
        "README.md": b"# Tiny",
        "pytorch_model.bin": b"x" * 5000,
        "original/consolidated.00.pth": b"y" * 5000,
    }


@pytest.fixture(scope="session")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model's GGUF files, two of them."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    config = tiny_config()
    write_gguf(path, config, tiny_tensors(config))
    return {"tiny-Q4_K_M.gguf": path.read_bytes(), "tiny-Q8_0.gguf": path.read_bytes() + bytes(32), "README.md": b"#"}


def test_pull_downloads_what_a_model_needs_and_says_so_first(machine: Machine, folder: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", folder)
    run = machine.puna("pull", "owner/tiny")
    assert run.returncode == 0, run.stderr
    place = Path(run.stdout.strip())
    held = {path.name for path in place.iterdir()}
    wanted = {name for name in folder if name not in ("README.md", "pytorch_model.bin") and "/" not in name}
    assert held == wanted
    size = sum(len(folder[name]) for name in wanted) / 1e6
    said = run.stderr.splitlines()[0]
    assert said.startswith("downloading owner/tiny (") and f"{len(wanted)} files, {size:,.1f} MB, to " in said
    assert machine.hub.sent == sum(len(folder[name]) for name in wanted)
    assert open_checkpoint(place).head == "lm"

    again = machine.puna("pull", "owner/tiny", "--json")
    assert json.loads(again.stdout) == {"model": "owner/tiny", "path": str(place), "downloaded": []}
    assert "downloading" not in again.stderr and machine.hub.sent == sum(len(folder[name]) for name in wanted)


@pytest.mark.slow
def test_everything_that_takes_a_model_takes_its_name(machine: Machine, folder: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", folder)
    tokens = machine.puna("tokenize", "--model", "owner/tiny", "the words", "--json")
    assert tokens.returncode == 0 and json.loads(tokens.stdout)["ids"], tokens.stderr
    small = sum(len(data) for name, data in folder.items() if name.endswith(".json") or name == "tokenizer.model")
    assert machine.hub.sent == small, "a tokenizer needs no weights"
    for arguments in (
        ("inspect", "owner/tiny"),
        ("generate", "--model", "owner/tiny", "--prompt", "the", "--max-tokens", "2"),
        ("convert", "owner/tiny", "out.gguf", "--to", "gguf"),
        ("convert", "owner/tiny", "tokens", "--tokenizer-only"),
    ):
        run = machine.puna(*arguments)
        assert run.returncode == 0, run.stderr
    assert open_checkpoint(machine.home / "out.gguf").config.vocab_size == 420


CLASSES = """
import json
import puna
config = puna.LlamaConfig.from_pretrained("owner/tiny", revision="old", rms_norm_eps=0.5)
assert config.rms_norm_eps == 0.5 and not hasattr(config, "revision") and config.vocab_size == 420
assert puna.GenerationConfig.from_pretrained("owner/tiny", revision="old").max_new_tokens == 4
assert puna.load_tokenizer("owner/tiny@old").encode("the")
ids = puna.LlamaTokenizer.from_pretrained("owner/tiny", revision="old", token=False)("the")["input_ids"]
assert ids == puna.AutoTokenizer.from_pretrained("owner/tiny", revision="old", use_fast=False)("the")["input_ids"]
model = puna.LlamaForCausalLM.from_pretrained("owner/tiny", revision="old", cache_dir="elsewhere")
assert model.config.vocab_size == 420
assert puna.LLM("owner/tiny@old").generate("the", max_tokens=2).text is not None
try:
    puna.LlamaForCausalLM.from_pretrained("owner/tiny", revisoin="old")
except TypeError:
    print("well")
"""


@pytest.mark.slow
def test_the_classes_take_names_and_the_arguments_of_transformers(machine: Machine, folder: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", folder, branch="old")
    machine.hub.add("owner/tiny", {"config.json": b"broken"})
    run = machine.run("-c", CLASSES)
    assert run.stdout.strip() == "well", run.stderr
    assert (machine.home / "elsewhere" / "models--owner--tiny").is_dir()


def test_a_download_that_was_cut_off_is_gone_on_with(machine: Machine, folder: dict[str, bytes]) -> None:
    large = bytes(range(256)) * 160_000
    machine.hub.add("owner/tiny", {**folder, "model-00002-of-00002.safetensors": large})
    machine.hub.cut_after = 25_000_000
    pattern = ("--include", "model-00002*")
    runs = [machine.puna("pull", "owner/tiny", *pattern) for _ in range(2)]
    if runs[0].returncode:  # huggingface_hub tries again by itself
        assert "what was downloaded is kept. Repeat the command to go on" in runs[0].stderr
    assert runs[1].returncode == 0, runs[1].stderr
    assert (Path(runs[1].stdout.strip()) / "model-00002-of-00002.safetensors").read_bytes() == large
    # huggingface_hub keeps what it has in pieces of 10 MB.
    assert machine.hub.cut_after is None and machine.hub.sent <= len(large) + 10_000_000


@pytest.mark.slow
def test_without_the_hub_the_cache_serves(machine: Machine, folder: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", folder)
    ask = ("tokenize", "--model", "owner/tiny", "the")
    assert machine.puna("pull", "owner/tiny").returncode == 0
    asked = len(machine.hub.requests)
    assert machine.puna(*ask, HF_HUB_OFFLINE="1").returncode == 0
    assert len(machine.hub.requests) == asked
    gone = machine.puna(*ask, HF_ENDPOINT="http://127.0.0.1:9")
    assert (
        gone.returncode == 0 and "the hub cannot be reached" in gone.stderr and "as it is in the cache" in gone.stderr
    )
    for changes, message in (
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached at http://127.0.0.1:9"),
        ({"HF_HUB_OFFLINE": "1"}, "is offline"),
    ):
        run = machine.puna("inspect", "owner/other", **changes)
        assert run.returncode == 1 and "no such file or folder here" in run.stderr and message in run.stderr


def test_local_paths_never_touch_the_network(machine: Machine, folder: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", folder)
    place = machine.home / "owner" / "tiny"
    place.mkdir(parents=True)
    for name, data in folder.items():
        if "/" not in name:
            (place / name).write_bytes(data)
    assert machine.puna("tokenize", "--model", "owner/tiny", "the").returncode == 0
    for path in ("./owner/none", "/owner/none", "none", "a/b/c", "../x"):
        run = machine.puna("inspect", path)
        assert run.returncode == 1 and "no such file or folder" in run.stderr
    assert machine.hub.requests == []


@pytest.mark.slow
def test_one_of_several_gguf_files(machine: Machine, quantised: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", quantised)
    run = machine.puna("pull", "owner/tiny")
    assert run.returncode == 1
    assert (
        "2 GGUF files: tiny-Q4_K_M.gguf, tiny-Q8_0.gguf. Name one by a part of its name, such as owner/tiny:"
        in run.stderr
    )
    run = machine.puna("pull", "owner/tiny:q8_0")
    assert run.returncode == 0 and run.stdout.strip().endswith("tiny-Q8_0.gguf"), run.stderr
    assert machine.hub.sent == len(quantised["tiny-Q8_0.gguf"])
    assert machine.puna("inspect", "owner/tiny:Q4_K_M").returncode == 0
    assert (
        "0 GGUF files with 'Q5' in their names; it has tiny-Q4_K_M.gguf" in machine.puna("pull", "owner/tiny:Q5").stderr
    )


@pytest.mark.slow
def test_what_the_hub_refuses(machine: Machine, folder: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", folder)
    machine.hub.add("owner/gated", folder, gated=True)
    machine.hub.add("owner/private", folder, token="hf_secret")
    machine.hub.add("owner/empty", {"README.md": b"#", "flax_model.msgpack": b"x"})
    for name, message in (
        ("owner/none", "no such file or folder here, and no such model at http"),
        ("owner/private", "or a private one. Check its name; for a private model set HF_TOKEN"),
        ("owner/gated", "its owners grant access one by one. Ask for it at http"),
        ("owner/tiny@v9", "the model has no revision 'v9'"),
        ("owner/empty", "no weights that puna reads; it has README.md, flax_model.msgpack"),
    ):
        run = machine.puna("pull", name)
        assert run.returncode == 1 and message in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert machine.puna("pull", "owner/private", HF_TOKEN="hf_secret").returncode == 0
    none = machine.puna("pull", "owner/tiny", "--include", "*.onnx")
    assert none.returncode == 1 and "no file matches *.onnx; it has README.md" in none.stderr


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(machine: Machine, folder: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", folder)
    script = (
        "import shutil, sys; from collections import namedtuple\n"
        "shutil.disk_usage = lambda path: namedtuple('Usage', 'total used free')(10, 9, 1)\n"
        "from puna import hub; from puna.errors import StorageError\n"
        "try: hub.fetch(hub.Reference('owner/tiny'))\n"
        "except StorageError as exc: print(exc)"
    )
    run = machine.run("-c", script)
    assert "owner/tiny takes 0." in run.stdout and "Free space, or set HF_HOME" in run.stdout, run.stderr
    assert machine.hub.sent == 0


@pytest.mark.parametrize(
    "text", ["name", "a/b/c", "/a/b", "./a/b", "a/../b", "a/b@", "a/b:", "~/a", "a b/c", "a/b:c:d", ""]
)
def test_what_is_no_reference(text: str) -> None:
    assert parse(text) is None
    with pytest.raises(RequestError, match="is no model of the hub; give owner/name"):
        read_reference(text)


def test_references() -> None:
    assert parse("meta-llama/Llama-3.2-1B") == Reference("meta-llama/Llama-3.2-1B")
    assert parse("a/b@refs/pr/3:Q4_K_M") == Reference("a/b", "refs/pr/3", "Q4_K_M")
    assert str(parse("a/b@v1:Q4")) == "a/b@v1:Q4"


NAMES = ["config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("names", "need", "subfolder", "chosen"),
    [
        ([*NAMES, "model.safetensors", "consolidated.safetensors"], "model", "", [*NAMES, "model.safetensors"]),
        ([*NAMES, "gptq_model-4bit.safetensors"], "model", "", [*NAMES, "gptq_model-4bit.safetensors"]),
        (["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"], "model", "", None),
        ([*NAMES, "pytorch_model.bin", "x.gguf"], "model", "", [*NAMES, "pytorch_model.bin"]),
        ([*NAMES, "model.safetensors"], "tokenizer", "", NAMES),
        ([*NAMES, "model.safetensors"], "config", "", NAMES),
        (["a.gguf", "config.json"], "tokenizer", "", ["config.json", "a.gguf"]),
        (["a.gguf"], "config", "", ["a.gguf"]),
        (["model.safetensors", "sub/tokenizer.model"], "tokenizer", "sub", ["sub/tokenizer.model"]),
    ],
)
def test_the_files_that_are_taken(names: list[str], need: str, subfolder: str, chosen: list[str] | None) -> None:
    found = Wanted(need, (), subfolder, Reference("a/b")).choose(names)  # type: ignore[arg-type]
    assert sorted(found) == sorted(names if chosen is None else chosen)
    with pytest.raises(ModelNotFoundError, match="no weights that puna reads; it has no files"):
        Wanted("model", (), "", Reference("a/b")).choose([])
