"""`LLM(prefix_cache_dir=...)`: later processes read prefixes from the disk, and every answer has the same bits."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from puna import LLM, AsyncLLM
from puna.backends import open_backend
from puna.checkpoint import open_checkpoint
from puna.engine.disk import model_fingerprint
from puna.errors import RequestError, StorageError
from tests.golden.files import LAYOUTS
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder

PROMPT = np.random.default_rng(0).integers(3, 512, 150).tolist()

SCRIPT = """
import json, sys
from puna import LLM

options = json.loads(sys.argv[1])
with LLM(**options) as llm:
    answers = [llm.generate(json.loads(prompt), max_tokens=50, temperature=temperature, seed=1, logprobs=5)
               for prompt in sys.argv[2:] for temperature in (0, 1)]
    rows = [[(item.logprob, item.top) for item in answer.logprobs] for answer in answers]
    print(json.dumps([[answer.ids for answer in answers], repr(rows), answers[0].cached_tokens]))
"""


def run(*prompts: list[int], variables: dict[str, str] | None = None, **options) -> tuple[list, int]:
    """Returns ([ids, logprobs], cached tokens of the first answer) of answers in a new process."""
    command = [sys.executable, "-c", SCRIPT, json.dumps({"path": str(LAYOUTS["hf"]), "threads": 1} | options)]
    command += [json.dumps(prompt) for prompt in prompts]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | (variables or {}), check=False)
    assert result.returncode == 0, result.stderr
    *answers, cached = json.loads(result.stdout)
    return answers, cached


def test_answers_after_a_restart_have_the_same_bits(tmp_path):
    folder = str(tmp_path / "cache")
    expected, cached = run(PROMPT, prefix_cache=False)
    assert cached == 0
    assert run(PROMPT, prefix_cache_dir=folder) == (expected, 0)
    assert run(PROMPT, prefix_cache_dir=folder) == (expected, 128)
    turn = [*PROMPT, *expected[0][0], 5]
    expected, _ = run(turn, prefix_cache=False)
    assert run(turn, prefix_cache_dir=folder) == (expected, 192)


def test_pages_of_other_numbers_are_not_used(tmp_path):
    folder = str(tmp_path)
    run(PROMPT, prefix_cache_dir=folder)
    expected, _ = run(PROMPT, prefix_cache=False, dtype="float32")
    assert run(PROMPT, prefix_cache_dir=folder, dtype="float32") == (expected, 0)
    assert run(PROMPT, prefix_cache_dir=folder, dtype="float32") == (expected, 128)


def test_pages_of_other_instruction_sets_are_not_used(tmp_path):
    kernels = "import puna.native.library as library; print(*library.machine().kernels)"
    names = subprocess.run([sys.executable, "-c", kernels], capture_output=True, text=True, check=True).stdout.split()
    if len(names) < 2:
        pytest.skip("this machine runs one build of the kernels")
    for name in names[:3]:
        variables = {"PUNA_KERNELS": name}
        expected, _ = run(PROMPT, prefix_cache=False, variables=variables)
        assert run(PROMPT, prefix_cache_dir=str(tmp_path), variables=variables) == (expected, 0)


def digest_of(path: Path, **options) -> bytes:
    checkpoint = open_checkpoint(path)
    values = {"threads": 1, "device": None, "dtype": None, "quantize": None, "max_batch": 1} | options
    backend = open_backend(checkpoint, "native", **values)
    try:
        return model_fingerprint(checkpoint, backend)
    finally:
        backend.close()


def change_a_weight(folder: Path) -> None:
    """Changes one byte in the middle of the weights in place; the size and the time of modification stay the same."""
    path = folder / "model.safetensors"
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(times.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_the_rope(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = 12345.0
    config.pop("rope_parameters", None)
    path.write_text(json.dumps(config))


def test_the_fingerprint_covers_weights_configuration_and_numerics(tmp_path):
    config = tiny_config()
    original, copy = write_folder(tmp_path / "original", config, tiny_tensors(config)), tmp_path / "copy"
    shutil.copytree(original, copy)
    digests = {digest_of(original)}
    assert {digest_of(copy), digest_of(original, threads=2), digest_of(original, max_batch=3)} == digests
    digests |= {digest_of(original, dtype="float32"), digest_of(original, quantize="q8_0")}
    change_a_weight(copy)
    digests.add(digest_of(copy))
    change_the_rope(copy)
    digests.add(digest_of(copy))
    assert len(digests) == 5


def test_a_changed_model_uses_no_pages_of_the_original(tmp_path):
    model, folder = tmp_path / "model", str(tmp_path / "cache")
    shutil.copytree(LAYOUTS["hf"], model)
    run(PROMPT, path=str(model), prefix_cache_dir=folder)
    change_a_weight(model)
    expected, _ = run(PROMPT, path=str(model), prefix_cache=False)
    assert run(PROMPT, path=str(model), prefix_cache_dir=folder) == (expected, 0)


def test_asyncio_uses_the_folder(tmp_path):
    async def answer() -> tuple:
        async with AsyncLLM(LAYOUTS["hf"], threads=1, prefix_cache_dir=tmp_path) as llm:
            answers = await asyncio.gather(*(llm.generate(PROMPT, max_tokens=5) for _ in range(3)))
            return answers[0].ids, min(item.cached_tokens for item in answers), llm._engine.pool.disk.hits

    ids, *_ = asyncio.run(answer())
    assert asyncio.run(answer()) == (ids, 128, 2)


def test_an_interrupted_program_leaves_complete_files(tmp_path):
    """Ctrl-C at random moments ends the program at once, and later programs give the same answers."""
    expected, _ = run(PROMPT, prefix_cache=False)
    script = SCRIPT.replace("answers =", "print('ready', flush=True)\n    while True: answers =")
    options = {"path": str(LAYOUTS["hf"]), "threads": 1, "prefix_cache_dir": str(tmp_path), "prefix_cache": True}
    for turn in range(4):
        command = [sys.executable, "-c", script, json.dumps(options), json.dumps([turn + 5, *PROMPT])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.03 * turn)
            process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=60)[1]
        assert b"KeyboardInterrupt" in errors
    assert not list(tmp_path.glob("*.tmp"))
    assert run(PROMPT, prefix_cache_dir=str(tmp_path))[0] == expected


def test_a_folder_that_cannot_be_created_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="file/cache cannot be created .* kept in memory only"):
        llm = LLM(LAYOUTS["hf"], threads=1, prefix_cache_dir=tmp_path / "file" / "cache")
    with llm:
        assert len(llm.generate(PROMPT, max_tokens=3).ids) == 3


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"prefix_cache_dir": "x", "prefix_cache": False}, RequestError, "prefix_cache_dir is 'x', but prefix_cache is"),
    ({"prefix_cache_dir": ""}, StorageError, "the folder's name is empty"),
    ({"prefix_cache_dir": 5}, StorageError, "prefix_cache_dir is 5; it must be a text, a Path"),
    ({"prefix_cache_bytes": "1"}, RequestError, "prefix_cache_bytes is '1'; it must be a whole number"),
    ({"prefix_cache_bytes": 1}, RequestError, "prefix_cache_bytes is 1, but there is no prefix_cache_dir"),
    ({"prefix_cache_bytes": True}, RequestError, "prefix_cache_bytes is True"),
    ({"prefix_cache_dir": "x", "prefix_cache_bytes": 1000}, StorageError, "prefix_cache_bytes is 1000 bytes, but the"),
])  # fmt: skip
def test_invalid_arguments(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        LLM(LAYOUTS["hf"], threads=1, **options)


@pytest.mark.parametrize("command", [["generate"], ["run"], ["chat"]])
def test_commands_read_the_prompts_of_earlier_commands(command, tmp_path):
    folder, text = tmp_path / "cache", "The llama lives in the high grassland. " * 8
    arguments = [*command, *([str(LAYOUTS["hf"])] if command == ["run"] else ["--model", str(LAYOUTS["hf"])])]
    process = [sys.executable, "-m", "puna", *arguments, "-n", "5", "--prefix-cache-dir", str(folder)]
    outputs, used = [], []
    for _ in range(2):
        result = subprocess.run(process, input=text, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
        used.append({path.name: path.stat().st_mtime_ns for path in folder.iterdir()})
    assert outputs[0] == outputs[1]
    assert used[0].keys() == used[1].keys() and used[0]
    assert all(used[1][name] > time for name, time in used[0].items())
