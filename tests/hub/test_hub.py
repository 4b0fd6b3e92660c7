"""Downloads from a fake hub: choice of files, resumption, refusals; and local paths, which never contact the hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import puna
from puna.checkpoint import open_checkpoint
from puna.errors import ModelNotFoundError, RequestError
from puna.hub import Reference, parse, read_reference
from puna.hub.choice import Selection
from puna.hub.snapshot import unverified_mark
from tests.golden.files import LAYOUTS
from tests.helpers.split_gguf import split
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder, write_gguf
from tests.helpers.vocabularies import train_sentencepiece

from .fake_hub import Hub, run_hub


@dataclass
class Machine:
    """A simulated machine: a cache, a working folder, and the hub that it contacts."""

    hub: Hub
    home: Path

    def environment(self, **changes: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        hub_variables = {"HF_HOME": str(self.home / "hf"), "HF_ENDPOINT": self.hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        return inherited | hub_variables | changes

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, cwd=self.home, env=self.environment(**changes)
        )

    def puna(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "puna", *arguments, **changes)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "work").mkdir()
    with run_hub() as hub:
        yield Machine(hub, tmp_path / "work")


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a complete model, and some files that puna does not need."""
    path = tmp_path_factory.mktemp("model")
    config = tiny_config(vocab_size=420)
    write_folder(path, config, tiny_tensors(config), shards=2)
    (path / "tokenizer.model").write_bytes(train_sentencepiece())
    (path / "generation_config.json").write_text('{"max_new_tokens": 4}')
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    return files | {
        "README.md": b"# Tiny",
        "pytorch_model.bin": b"x" * 5000,
        "original/consolidated.00.pth": b"y" * 5000,
    }


@pytest.fixture(scope="session")
def gguf_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a model with two GGUF files."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    config = tiny_config()
    write_gguf(path, config, tiny_tensors(config))
    return {"tiny-Q4_K_M.gguf": path.read_bytes(), "tiny-Q8_0.gguf": path.read_bytes() + bytes(32), "README.md": b"#"}


def test_pull_announces_and_downloads_only_the_files_of_a_model(
    machine: Machine, model_files: dict[str, bytes]
) -> None:
    machine.hub.add("owner/tiny", model_files)
    run = machine.puna("pull", "owner/tiny")
    assert run.returncode == 0, run.stderr
    path = Path(run.stdout.strip())
    expected = {name for name in model_files if name not in ("README.md", "pytorch_model.bin") and "/" not in name}
    assert {file.name for file in path.iterdir()} == expected
    size = sum(len(model_files[name]) for name in expected) / 1e6
    line = run.stderr.splitlines()[0]
    assert line.startswith("downloading owner/tiny (") and f"{len(expected)} files, {size:,.1f} MB, to " in line
    assert machine.hub.bytes_sent == sum(len(model_files[name]) for name in expected)
    assert open_checkpoint(path).head == "lm"

    second = machine.puna("pull", "owner/tiny", "--json")
    assert json.loads(second.stdout) == {"model": "owner/tiny", "path": str(path), "downloaded": []}
    assert "downloading" not in second.stderr and machine.hub.bytes_sent == sum(
        len(model_files[name]) for name in expected
    )


@pytest.mark.slow
def test_every_command_accepts_names_of_the_hub(machine: Machine, model_files: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", model_files)
    tokens = machine.puna("tokenize", "--model", "owner/tiny", "the words", "--json")
    assert tokens.returncode == 0 and json.loads(tokens.stdout)["ids"], tokens.stderr
    tokenizer_bytes = sum(
        len(data) for name, data in model_files.items() if name.endswith(".json") or name == "tokenizer.model"
    )
    assert machine.hub.bytes_sent == tokenizer_bytes, "a tokenizer needs no weights"
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
    print("success")
"""


@pytest.mark.slow
def test_classes_accept_names_and_the_arguments_of_transformers(
    machine: Machine, model_files: dict[str, bytes]
) -> None:
    machine.hub.add("owner/tiny", model_files, branch="old")
    machine.hub.add("owner/tiny", {"config.json": b"broken"})
    run = machine.run("-c", CLASSES)
    assert run.stdout.strip() == "success", run.stderr
    assert (machine.home / "elsewhere" / "models--owner--tiny").is_dir()


@pytest.mark.slow
def test_an_interrupted_download_is_resumed(machine: Machine, model_files: dict[str, bytes]) -> None:
    large = bytes(range(256)) * 160_000
    machine.hub.add("owner/tiny", {**model_files, "model-00002-of-00002.safetensors": large})
    machine.hub.interrupt_after = 25_000_000
    pattern = ("--include", "model-00002*")
    runs = [machine.puna("pull", "owner/tiny", *pattern) for _ in range(2)]
    if runs[0].returncode:  # some releases of huggingface_hub retry by themselves
        assert "the partial download is kept. Repeat the command to resume" in runs[0].stderr
    assert runs[1].returncode == 0, runs[1].stderr
    assert (Path(runs[1].stdout.strip()) / "model-00002-of-00002.safetensors").read_bytes() == large
    # huggingface_hub writes pieces of 10 MB; an incomplete piece is downloaded again.
    assert machine.hub.interrupt_after is None and machine.hub.bytes_sent <= len(large) + 10_000_000


@pytest.mark.slow
def test_the_cache_is_used_without_the_hub(machine: Machine, model_files: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", model_files)
    command = ("tokenize", "--model", "owner/tiny", "the")
    assert machine.puna("pull", "owner/tiny").returncode == 0
    count = len(machine.hub.requests)
    assert machine.puna(*command, HF_HUB_OFFLINE="1").returncode == 0
    assert len(machine.hub.requests) == count
    run = machine.puna(*command, HF_ENDPOINT="http://127.0.0.1:9")
    assert run.returncode == 0
    assert "the hub cannot be reached" in run.stderr and "using owner/tiny from the cache" in run.stderr
    for changes, message in (
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached at http://127.0.0.1:9"),
        ({"HF_HUB_OFFLINE": "1"}, "the hub is not used (HF_HUB_OFFLINE"),
    ):
        run = machine.puna("inspect", "owner/other", **changes)
        assert run.returncode == 1 and "no such file or folder" in run.stderr and message in run.stderr


@pytest.mark.slow
def test_local_paths_never_contact_the_hub(machine: Machine, model_files: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", model_files)
    path = machine.home / "owner" / "tiny"
    path.mkdir(parents=True)
    for name, data in model_files.items():
        if "/" not in name:
            (path / name).write_bytes(data)
    assert machine.puna("tokenize", "--model", "owner/tiny", "the").returncode == 0
    for missing in ("./owner/none", "/owner/none", "none", "a/b/c", "../x"):
        run = machine.puna("inspect", missing)
        assert run.returncode == 1 and "no such file or folder" in run.stderr
    assert machine.hub.requests == []


@pytest.mark.slow
def test_one_of_several_gguf_files_is_chosen_by_its_name(machine: Machine, gguf_files: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", gguf_files)
    run = machine.puna("pull", "owner/tiny")
    assert run.returncode == 1
    assert (
        "2 GGUF files: tiny-Q4_K_M.gguf, tiny-Q8_0.gguf. Choose one by a part of its name, such as owner/tiny:"
        in run.stderr
    )
    run = machine.puna("pull", "owner/tiny:q8_0")
    assert run.returncode == 0 and run.stdout.strip().endswith("tiny-Q8_0.gguf"), run.stderr
    assert machine.hub.bytes_sent == len(gguf_files["tiny-Q8_0.gguf"])
    assert machine.puna("inspect", "owner/tiny:Q4_K_M").returncode == 0
    assert (
        "0 GGUF files with 'Q5' in their names; the model has tiny-Q4_K_M.gguf"
        in machine.puna("pull", "owner/tiny:Q5").stderr
    )


def test_a_split_gguf_model_is_downloaded_with_all_its_parts(
    machine: Machine, gguf_files: dict[str, bytes], tmp_path: Path
) -> None:
    parts = {f"Q8_0/{path.name}": path.read_bytes() for path in split(tmp_path / "parts", split_max_tensors=9)}
    assert len(parts) == 3
    machine.hub.add("owner/split", parts | gguf_files)
    answer = puna.LLM(LAYOUTS["gguf"]).generate("Once upon", max_tokens=8).text
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        run = machine.puna("generate", "Once upon", "-m", "owner/split:model-0", "-n", "8", "--json", **offline)
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["text"] == answer
        assert machine.hub.bytes_sent == sum(map(len, parts.values()))
    run = machine.puna("inspect", "owner/split:model-0", "--json")
    report = json.loads(run.stdout)
    assert [file["name"] for file in report["files"]] == [name.removeprefix("Q8_0/") for name in parts], run.stderr
    run = machine.puna("pull", "owner/split:model-0")
    assert run.stdout.strip().endswith("/Q8_0/model-00001-of-00003.gguf")


@pytest.mark.slow
def test_refusals_of_the_hub_are_explained(machine: Machine, model_files: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", model_files)
    machine.hub.add("owner/gated", model_files, gated=True)
    machine.hub.add("owner/private", model_files, token="hf_secret")
    machine.hub.add("owner/empty", {"README.md": b"#", "flax_model.msgpack": b"x"})
    for name, message in (
        ("owner/none", "no such file or folder, and no public model of this name at http"),
        ("owner/private", "Check the name; for a private model, set HF_TOKEN"),
        ("owner/gated", "access to this model must be requested. Request it at http"),
        ("owner/tiny@v9", "the model has no revision 'v9'"),
        ("owner/empty", "no weights that puna reads; the model has README.md, flax_model.msgpack"),
    ):
        run = machine.puna("pull", name)
        assert run.returncode == 1 and message in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert machine.puna("pull", "owner/private", HF_TOKEN="hf_secret").returncode == 0
    run = machine.puna("pull", "owner/tiny", "--include", "*.onnx")
    assert run.returncode == 1 and "no file matches *.onnx; the model has README.md" in run.stderr


FILE = {"rfilename": "config.json", "size": 9, "blobId": "0" * 40}


UNEXPECTED = [
    ("<html>log in</html>", "not a list of files"),
    ({"siblings": [{}]}, "not a list of files"),
    ({"siblings": [{"rfilename": 7}]}, "7 is not the name of a file"),
    ({"siblings": [FILE | {"rfilename": "../../outside.json"}]}, "'../../outside.json' is not the name of a file"),
    ({"siblings": [FILE | {"rfilename": "/outside.json"}]}, "is not the name of a file"),
    ({"siblings": [FILE | {"rfilename": "a\x1b[2J.json"}]}, "is not the name of a file"),
    ({"siblings": [FILE | {"size": "9"}]}, "config.json has a size of '9'"),
    ({"siblings": None}, "the files are None, not a list"),
    ({"sha": None}, "the commit is None, not 40 hexadecimal digits"),
    ({"sha": "../../../../outside"}, "the commit is '../../../../outside', not 40 hexadecimal digits"),
    ({"sha": "main"}, "the commit is 'main', not 40"),
    (429, "answered with status 429; wait some minutes, or set HF_TOKEN"),
    (500, "answered with status 500"),
]
"""Listings, or statuses, and the errors that they cause."""

FETCH_REPEATEDLY = """
import json, sys
from puna import hub
from puna.errors import PunaError
for line in sys.stdin:
    try: print(json.dumps(str(hub.fetch(hub.Reference("owner/tiny"), "config"))), flush=True)
    except PunaError as exc: print(json.dumps(str(exc)), flush=True)
"""


def test_unexpected_answers_of_the_hub_raise_puna_errors(machine: Machine) -> None:
    machine.hub.add("owner/tiny", {"config.json": b"{}"})
    command = [sys.executable, "-c", FETCH_REPEATEDLY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    answers = []
    with subprocess.Popen(command, cwd=machine.home, env=machine.environment(), **pipes) as process:
        for listing, _ in UNEXPECTED:
            machine.hub.listing = listing
            process.stdin.write("\n")
            process.stdin.flush()
            answers.append(process.stdout.readline())
        process.stdin.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0, errors
    wrong = [
        (message, answer)
        for (_, message), answer in zip(UNEXPECTED, answers, strict=True)
        if message not in json.loads(answer or '""')
    ]
    assert wrong == [], errors
    assert not [path for path in machine.home.parent.rglob("*") if "outside" in path.name]


FETCH = """
from puna import hub
from puna.errors import PunaError
try: print(hub.fetch(hub.Reference("owner/tiny"), "config"))
except PunaError as exc: print(exc)
"""


def test_a_damaged_download_is_detected_and_repeated(machine: Machine) -> None:
    machine.hub.add("owner/tiny", {"config.json": b'{"vocab_size": 420}'})
    machine.hub.damaged_files = ("config.json",)
    run = machine.run("-c", FETCH)
    assert "config.json was damaged during the download" in run.stdout and "download it again" in run.stdout
    machine.hub.damaged_files = ()
    run = machine.run("-c", FETCH)
    assert (Path(run.stdout.strip()) / "config.json").read_bytes() == b'{"vocab_size": 420}', run.stderr


@pytest.mark.slow
def test_no_damaged_file_stays_in_the_cache(machine: Machine, model_files: dict[str, bytes]) -> None:
    """Two damaged shards, and a file that was truncated in the cache, are downloaded again."""
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    machine.hub.add("owner/tiny", model_files)
    machine.hub.damaged_files = shards
    runs = [machine.puna("pull", "owner/tiny") for _ in range(2)]
    assert all(run.returncode == 1 and "damaged during the download" in run.stderr for run in runs)
    machine.hub.damaged_files = ()
    repeated = machine.puna("pull", "owner/tiny")
    assert repeated.returncode == 0, repeated.stderr
    folder = Path(repeated.stdout.strip())
    assert all((folder / name).read_bytes() == model_files[name] for name in shards)
    with (folder / shards[0]).resolve().open("r+b") as file:
        file.truncate(100)
    assert machine.puna("pull", "owner/tiny").returncode == 0
    assert (folder / shards[0]).read_bytes() == model_files[shards[0]]


def test_damaged_data_of_an_interrupted_download_is_replaced(machine: Machine, gguf_files: dict[str, bytes]) -> None:
    """The process ended after the blob was written and before the link to the blob was created."""
    name = "tiny-Q8_0.gguf"
    machine.hub.add("owner/tiny", {name: gguf_files[name]})
    path = Path(machine.puna("pull", "owner/tiny").stdout.strip())
    blob = path.resolve()
    path.unlink()
    unverified_mark(path).touch()
    blob.write_bytes(bytes(len(gguf_files[name])))
    run = machine.puna("pull", "owner/tiny")
    assert run.returncode == 0, run.stderr
    assert path.read_bytes() == gguf_files[name] and not unverified_mark(path).exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_download_of_several_files_at_once(machine: Machine, model_files: dict[str, bytes]) -> None:
    large = {f"model-0000{n}-of-00003.safetensors": bytes([n]) * 4_000_000 for n in (1, 2, 3)}
    machine.hub.add("owner/tiny", {"config.json": model_files["config.json"], **large})
    machine.hub.seconds_per_megabyte = 25.0
    command = [sys.executable, "-m", "puna", "pull", "owner/tiny"]
    with subprocess.Popen(command, cwd=machine.home, env=machine.environment(), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None and process.stderr.readline().startswith(b"downloading")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, "the files take 100 s each"


def test_a_file_of_a_process_that_ended_before_verifying_is_verified(machine: Machine) -> None:
    machine.hub.add("owner/tiny", {"config.json": b'{"vocab_size": 420}'})
    folder = Path(machine.run("-c", FETCH).stdout.strip())
    sent = machine.hub.bytes_sent
    (folder / "config.json").resolve().write_bytes(b'{"vocab_size": 421}')
    mark = unverified_mark(folder / "config.json")
    assert mark.parent.is_dir() and not mark.exists()
    mark.touch()
    assert machine.run("-c", FETCH).stdout.strip() == str(folder)
    assert (folder / "config.json").read_bytes() == b'{"vocab_size": 420}' and not mark.exists()
    assert machine.hub.bytes_sent == 2 * sent


def test_quiet_commands_print_no_messages_of_the_hub(machine: Machine, model_files: dict[str, bytes]) -> None:
    machine.hub.add("owner/tiny", model_files)
    assert machine.puna("tokenize", "-q", "-m", "owner/tiny", "the").stderr == ""
    machine.hub.listing = 429
    assert machine.puna("tokenize", "-q", "-m", "owner/tiny", "the").stderr == ""


@pytest.mark.parametrize("options", [(), ("--tokenizer-only",)])
def test_nothing_is_downloaded_for_a_conversion_whose_target_exists(
    machine: Machine, model_files: dict[str, bytes], options: tuple[str, ...]
) -> None:
    machine.hub.add("owner/tiny", model_files)
    (machine.home / "out").mkdir()
    (machine.home / "out" / "file").touch()
    run = machine.puna("convert", "owner/tiny", "out", *options)
    assert run.returncode == 1 and "out exists already" in run.stderr
    assert machine.hub.requests == []


def test_files_are_downloaded_from_the_commit_that_was_listed(machine: Machine) -> None:
    old = machine.hub.add("owner/tiny", {"config.json": b"old"}).branches["main"]
    machine.hub.add("owner/tiny", {"config.json": b"new"})
    machine.hub.listing = {"sha": old, "siblings": [{"rfilename": "config.json", "size": 3}]}
    folder = Path(machine.run("-c", FETCH).stdout.strip())
    assert folder.name == old and (folder / "config.json").read_bytes() == b"old"
    offline = machine.run("-c", FETCH, HF_HUB_OFFLINE="1")
    assert Path(offline.stdout.strip()) == folder, "the commit of the branch is recorded in the cache"


@pytest.mark.parametrize("revision", ["../x", "a/../../b", "", "/etc", "a b"])
def test_revisions_that_are_not_valid_names_are_refused(revision: str) -> None:
    with pytest.raises(RequestError, match="not the name of a branch"):
        Reference("owner/tiny").at(revision)


def test_a_disk_that_is_too_small_is_reported_before_the_download(
    machine: Machine, model_files: dict[str, bytes]
) -> None:
    machine.hub.add("owner/tiny", model_files)
    script = (
        "import shutil, sys; from collections import namedtuple\n"
        "shutil.disk_usage = lambda path: namedtuple('Usage', 'total used free')(10, 9, 1)\n"
        "from puna import hub; from puna.errors import StorageError\n"
        "try: hub.fetch(hub.Reference('owner/tiny'))\n"
        "except StorageError as exc: print(exc)"
    )
    run = machine.run("-c", script)
    assert "owner/tiny needs 0." in run.stdout and "Free some space, or set HF_HOME" in run.stdout, run.stderr
    assert machine.hub.bytes_sent == 0


@pytest.mark.parametrize(
    "text", ["name", "a/b/c", "/a/b", "./a/b", "a/../b", "a/b@", "a/b:", "~/a", "a b/c", "a/b:c:d", ""]
)
def test_texts_that_are_not_references_are_refused(text: str) -> None:
    assert parse(text) is None
    with pytest.raises(RequestError, match="is not a model of the hub; give owner/name"):
        read_reference(text)


def test_references_are_parsed() -> None:
    assert parse("meta-llama/Llama-3.2-1B") == Reference("meta-llama/Llama-3.2-1B")
    assert parse("a/b@refs/pr/3:Q4_K_M") == Reference("a/b", "refs/pr/3", "Q4_K_M")
    assert str(parse("a/b@v1:Q4")) == "a/b@v1:Q4"


NAMES = ["config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("names", "need", "subfolder", "chosen"),
    [
        ([*NAMES, "model.safetensors", "consolidated.safetensors"], "model", "", [*NAMES, "model.safetensors"]),
        ([*NAMES, "gptq_model-4bit.safetensors"], "model", "", [*NAMES, "gptq_model-4bit.safetensors"]),
        (["adapter_config.json", "adapter_model.bin"], "model", "", None),
        ([*NAMES, "adapter_model.safetensors", "pytorch_model.bin"], "model", "", [*NAMES, "pytorch_model.bin"]),
        (["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"], "model", "", None),
        ([*NAMES, "pytorch_model.bin", "x.gguf"], "model", "", [*NAMES, "pytorch_model.bin"]),
        ([*NAMES, "model.safetensors"], "tokenizer", "", NAMES),
        ([*NAMES, "model.safetensors"], "config", "", NAMES),
        (["a.gguf", "config.json"], "tokenizer", "", ["config.json", "a.gguf"]),
        (["a.gguf"], "config", "", ["a.gguf"]),
        (["model.safetensors", "sub/tokenizer.model"], "tokenizer", "sub", ["sub/tokenizer.model"]),
    ],
)
def test_the_files_of_a_model_are_chosen(names: list[str], need: str, subfolder: str, chosen: list[str] | None) -> None:
    selection = Selection(need, (), subfolder, Reference("a/b"))  # type: ignore[arg-type]
    assert sorted(selection.choose(names)) == sorted(names if chosen is None else chosen)
    with pytest.raises(ModelNotFoundError, match="no weights that puna reads; the model has no files"):
        Selection("model", (), "", Reference("a/b")).choose([])
